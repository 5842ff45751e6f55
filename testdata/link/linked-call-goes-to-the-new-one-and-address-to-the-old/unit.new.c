void take(int (*)(int));
struct ops { int (*call)(int); };
struct ops *n_ops(const void *);
__attribute__((noinline)) int g(int n) { return n * 8 - 1; }
int f(int n) { take(g); return g(n) + 1; }
extern struct ops *ops;
int set(void) { static struct ops mine; static const struct ops others = { g }; ops = n_ops(&others); return 2 + (mine.call != 0); }
extern int (*in_data)(int);
int (*by_lea(void))(int) { int (*f)(int); asm("leaq g(%%rip), %0" : "=r" (f)); in_data = f; return f; }
int (*in_data)(int) = g;
