__attribute__((section(".sched.text"))) int f(int n) { return n * 3; }
__attribute__((section(".sched.text"))) int g(int n) { return n * 4; }
