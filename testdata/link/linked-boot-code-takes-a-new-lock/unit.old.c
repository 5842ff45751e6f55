extern void hold(void *lock);
__attribute__((section(".init.text"))) void start(void) { }
long f(int n) { return n; }
