extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *), get(void*), put(void*);
extern long count, other, a, b, m;
static inline long ld(void *d){ long x=5; asm volatile("1: movq (%1),%0\n2:\n.pushsection __ex_table,\"a\"\n.balign 4\n.long 1b-., 2b-.\n.long 0\n.popsection":"+r"(x):"r"(d)); return x; }
 int loop(void *d){ for(;;){ take(); nap(10); ld(d); give(); } }
