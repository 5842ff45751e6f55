long work(long n, long more);
long caller(long n) { return work(n, 2) * 3; }
long unchanged(long n) { return n * 5; }
