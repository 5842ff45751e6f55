static int page[1024] __attribute__((aligned(4096)));
int f(int n) { return page[n]++; }
