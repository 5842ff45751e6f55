extern void slow(int n) __attribute__((cold));
int f(long *from) { return 1; }
