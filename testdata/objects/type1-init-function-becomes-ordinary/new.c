void use(int);
__attribute__((noinline)) void setup(int n) { use(n); use(n + 1); }
void start(int n) { setup(n); }
