void take(int (*)(int));
__attribute__((noinline)) static int added(int n) { return n * 9 - 1; }
int f(int n) { take(added); return added(n); }
