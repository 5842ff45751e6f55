int check(int n) { return n < 5; }
int other(int n) { return n * 3; }
