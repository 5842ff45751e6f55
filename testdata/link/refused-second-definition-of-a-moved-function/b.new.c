int use(int);
int f(int n) { return use(n) + 2; }
int g(int n) { return f(n); }
