struct item { int n; };
struct item *current = &(struct item){ 3 };
int next(void) { return current->n++; }
