void use(long);
__attribute__((noinline)) static long work(long n) { use(n); return n + 1; }
long second(long n) { return work(n); }
long third(long n) { return n; }
