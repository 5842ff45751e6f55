int f(int n) { return n; }
int target(int n) { return n; }
