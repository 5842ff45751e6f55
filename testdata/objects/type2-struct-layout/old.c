struct item { int a; int b; };
int sum(struct item *i) { return i->a + i->b; }
