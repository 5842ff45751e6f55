#define READ_MOSTLY __attribute__((section(".data..read_mostly")))
static int first READ_MOSTLY = 1;
static int second READ_MOSTLY = 2;
static int third READ_MOSTLY = 3;
void f(void) { *(volatile int *)&third = 78; *(volatile char *)&first = 7; }
int all(void) { return first + second + third; }
