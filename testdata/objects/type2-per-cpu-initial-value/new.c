__attribute__((section(".data..percpu"))) int level = 2;
int get(void) { return *(__seg_gs int *)(unsigned long)&level; }
