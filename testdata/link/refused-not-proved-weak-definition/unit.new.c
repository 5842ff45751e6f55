__attribute__((weak)) int hook(int n) { return n + 1; }
int f(int n) { return hook(n); }
