int check(int n) { return n < 4; }
