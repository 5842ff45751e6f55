void use(int);
void one(int n) { use(n); use(n + 2); }
