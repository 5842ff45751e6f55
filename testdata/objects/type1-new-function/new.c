__attribute__((noinline)) static int bound(int n) { return n * n - 7; }
int check(int n) { return bound(n) < 4; }
