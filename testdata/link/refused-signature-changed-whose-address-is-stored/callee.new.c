void use(long);
long work(long n, long more) { use(n); return n + more; }
