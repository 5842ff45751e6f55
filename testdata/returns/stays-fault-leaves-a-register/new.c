extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
int loop(void *d){ long x=6; asm volatile("1: movq (%1),%0\n2:\n.pushsection __ex_table,\"a\"\n.balign 4\n.long 1b-., 2b-.\n.long 0\n.popsection":"+r"(x):"r"(d)); while(!stop()){ nap(10); note(x);} return 0;}