int a(int), b(int);
int f(int n) { return b(n) + 6; }
