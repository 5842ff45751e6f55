static long table[4] = { 1, 2, 3, 4 };
static long last = 5;
long f(void) { long sum = 1; for (long *p = table; p != table + 4; p++) { asm volatile("" : "+r" (p)); sum += *p; } return sum; }
long g(long n) { table[n & 3] = n; return last += n; }
