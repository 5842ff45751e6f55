int check(int n) { return n; }
