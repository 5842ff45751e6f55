void use(long);
__attribute__((noinline)) static long constant(long a, long b) { use(a); return a * b - 5; }
long second(long n) { return constant(n, 7); }
long third(long n) { return constant(n + 1, 7); }
