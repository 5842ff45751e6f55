void use(long);
long work(long n) { use(n); return n + 1; }
