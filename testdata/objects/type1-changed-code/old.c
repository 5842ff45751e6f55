int check(int n) { return n < 4; }
int other(int n) { return n * 3; }
