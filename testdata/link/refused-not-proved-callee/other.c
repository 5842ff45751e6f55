int a(int n) { return n; }
int b(int n) { return n * 2; }
