int f(long *from) { return 1; }
