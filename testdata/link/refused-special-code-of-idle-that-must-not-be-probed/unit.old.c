__attribute__((section(".cpuidle.text"))) int f(int n) { return n * 3; }
