void use(int);
void one(int n) { use(n); use(n + 1); }
void two(int n) __attribute__((alias("one")));
