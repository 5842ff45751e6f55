__attribute__((noinline)) static int inner(int n) { return n * n - 7; }
int outer(int n) { return inner(n) + inner(n + 1); }
