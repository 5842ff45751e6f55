int limit = 5;
int check(int n) { return n < limit; }
