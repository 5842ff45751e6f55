int limit = 4;
int f(int n) { return n < limit; }
