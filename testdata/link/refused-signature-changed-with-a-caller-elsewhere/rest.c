void use(long n) { }
long work(long n);
long other(long n) { return work(n) * 7; }
