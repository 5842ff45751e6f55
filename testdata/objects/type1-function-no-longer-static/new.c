__attribute__((noinline)) int inner(int n) { return n * n - 8; }
int outer(int n) { return inner(n) + inner(n + 1); }
