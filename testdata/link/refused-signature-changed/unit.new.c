void use(long);
static long work(unsigned long n) { use(n); return n + 2; }
long (*const table[])(long) = { (void *)work };
