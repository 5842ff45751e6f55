__attribute__((section(".entry.text"))) int f(int n) { return n * 3; }
