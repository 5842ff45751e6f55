int use(int);
int f(int n) { return use(n) + 1; }
int user(int n) { return n; }
