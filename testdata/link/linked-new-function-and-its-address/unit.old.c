void take(int (*)(int));
int f(int n) { return n; }
