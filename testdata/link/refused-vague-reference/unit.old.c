#define READ_MOSTLY __attribute__((section(".data..read_mostly")))
static long table[4] READ_MOSTLY = { 1, 2, 3, 4 };
static long last READ_MOSTLY = 5;
long f(void) { long sum = 0; for (long *p = table; p != table + 4; p++) { asm volatile("" : "+r" (p)); sum += *p; } return sum; }
long g(long n) { return last += n; }
