int setup(int);
int f(int n) { return n; }
