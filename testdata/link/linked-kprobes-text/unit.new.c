__attribute__((section(".kprobes.text"))) int f(int n) { return n * 5; }
