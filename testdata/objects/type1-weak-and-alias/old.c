__attribute__((weak)) int arch_hook(void) { return 1; }
int real(int n) { return n + arch_hook(); }
int other(int n) __attribute__((alias("real")));
