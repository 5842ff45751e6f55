int limit = 3;
int f(int n) { return n < limit; }
