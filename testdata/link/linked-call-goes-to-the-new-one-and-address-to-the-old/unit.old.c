void take(int (*)(int));
struct ops { int (*call)(int); };
struct ops *n_ops(const void *);
__attribute__((noinline)) int g(int n) { return n * 7 - 1; }
int f(int n) { take(g); return g(n); }
extern struct ops *ops;
int set(void) { static struct ops mine; ops = &mine; return 1; }
int (*by_lea(void))(int) { int (*f)(int); asm("leaq g(%%rip), %0" : "=r" (f)); return f; }
int (*in_data)(int) = g;
