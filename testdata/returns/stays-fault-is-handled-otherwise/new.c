extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
int loop(void *d){ long x=0; asm volatile("1: testb $1,(%1)\n2:\n.pushsection __ex_table,\"a\"\n.balign 4\n.long 1b-., 2b-.\n.long 0x10311\n.popsection":"+b"(x):"r"(d)); while(!stop()){ nap(10); note(x);} return 0;}