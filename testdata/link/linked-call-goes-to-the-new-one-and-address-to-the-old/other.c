struct ops;
void take(int (*f)(int)) { f(1); }
struct ops *ops;
struct ops *n_ops(const void *p) { return (struct ops *)p; }
