__attribute__((noinline)) static int g(int n) { return n * 7 - 1; }
int f2(int n) { return g(n) + 1; }
