int setup(int);
int f(int n) { return setup(n); }
