long work(long n);
long caller(long n) { return work(n) * 3; }
long unchanged(long n) { return n * 5; }
