int a(int), b(int);
int f(int n) { return a(n) + 5; }
