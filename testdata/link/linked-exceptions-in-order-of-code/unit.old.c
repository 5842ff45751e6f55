int f(long *from) { return 1; }
int g(long *from) { return 2; }
