void use(int);
int real(int n) { use(n); return n + 1; }
