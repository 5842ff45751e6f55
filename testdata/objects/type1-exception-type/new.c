#define FETCH(to, from, type, failed) asm volatile goto("1: mov (%1), %0\n\t.pushsection __ex_table, \"a\"\n\t.balign 4\n\t.long 1b - .\n\t.long %l[" #failed "] - .\n\t.long " #type "\n\t.popsection" : "=r" (to) : "r" (from) : : failed)
int f(long *from) { long n; FETCH(n, from, 4, failed); return n; failed: return -14; }
