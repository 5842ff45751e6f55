int use(int n) { return n; }
