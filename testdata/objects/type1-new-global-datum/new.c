int check(int n) { return n; }
int added = 5;
