void use(int);
int real(int n) { use(n); return n + 2; }
__attribute__((used)) static int alias(int n) __attribute__((alias("real")));
