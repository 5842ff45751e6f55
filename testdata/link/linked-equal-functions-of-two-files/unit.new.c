__attribute__((noinline)) static int g(int n) { return n * 7 - 2; }
int f(int n) { return g(n) + 1; }
