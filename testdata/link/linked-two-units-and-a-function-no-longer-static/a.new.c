int hidden(int);
int (*address(void))(int) { return hidden; }
int f(int n) { return hidden(n); }
