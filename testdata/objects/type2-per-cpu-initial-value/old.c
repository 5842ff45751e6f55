__attribute__((section(".data..percpu"))) int level = 1;
int get(void) { return *(__seg_gs int *)(unsigned long)&level; }
