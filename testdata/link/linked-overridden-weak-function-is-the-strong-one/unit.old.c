__attribute__((weak)) int hook(int n) { return n; }
int f(int n) { return hook(n); }
