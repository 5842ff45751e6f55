void use(long);
static long work(long n) { use(n); return n + 1; }
long (*const table[])(long) = { work };
