int f(int);
int use(int n) { return n; }
int outside(int n) { return f(n); }
