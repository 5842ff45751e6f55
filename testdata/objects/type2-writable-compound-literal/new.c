struct item { int n; };
struct item *current = &(struct item){ 4 };
int next(void) { return current->n++; }
