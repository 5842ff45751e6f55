#define PERCPU __attribute__((section(".data..percpu")))
static PERCPU int first = 1;
static PERCPU int level = 2;
extern PERCPU int remote;
int f(int n) { return *(__seg_gs int *)(unsigned long)&level - n + *(__seg_gs int *)(unsigned long)&remote; }
int *address(void) { return &level + 1; }
int *address_first(void) { return &first; }
