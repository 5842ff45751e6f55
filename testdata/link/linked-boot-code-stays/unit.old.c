__attribute__((section(".init.text"))) int f(int n) { return n * 3; }
