__attribute__((section(".data..read_mostly"))) int counter;
int next(void) { return counter++; }
