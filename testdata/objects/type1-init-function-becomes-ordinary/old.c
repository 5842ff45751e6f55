void use(int);
__attribute__((section(".init.text"), noinline)) void setup(int n) { use(n); use(n + 1); }
void start(int n) { setup(n); }
