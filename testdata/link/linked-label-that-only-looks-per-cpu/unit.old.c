extern char __per_cpu_load[], __per_cpu_start[];
char *f(int n) { return __per_cpu_load + n; }
char *g(int n) { return __per_cpu_start + n; }
