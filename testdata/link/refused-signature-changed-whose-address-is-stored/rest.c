void use(long n) { }
long work(long n);
long (*const table[])(long) = { work };
