int use(int);
int user(int n) { return n + 1; }
