__attribute__((section(".noinstr.text"))) int f(int n) { return n * 5; }
