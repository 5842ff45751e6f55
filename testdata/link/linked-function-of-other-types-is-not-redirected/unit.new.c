void use(long);
__attribute__((noinline)) static long work(long n, long *from) { use(n); *from = n; return n + 2; }
long second(long n) { return work(n, &n); }
long third(long n) { return n; }
