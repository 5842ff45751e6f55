__attribute__((noinline)) static int g(int n) { return n * 7 - 1; }
__attribute__((noinline)) static int h(int n) { return n * 9 - 1; }
int f(int n) { return g(n) + h(n); }
