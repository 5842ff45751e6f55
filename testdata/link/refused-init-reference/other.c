__attribute__((section(".init.text"))) int setup(int n) { return n * 3; }
