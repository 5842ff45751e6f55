#define INIT __attribute__((section(".init.text")))
int check(int n) { return n; }
int INIT start(void) { return check(2); }
