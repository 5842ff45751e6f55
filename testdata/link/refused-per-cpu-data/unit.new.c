static __attribute__((section(".data..percpu"))) int level = 2;
int f(int n) { return *(__seg_gs volatile int *)(unsigned long)&level + n; }
