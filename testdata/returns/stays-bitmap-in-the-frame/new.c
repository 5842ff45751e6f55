extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
int loop(void *d){ unsigned long map[10]; map[0]=0; map[8]=2; asm volatile("":: "m"(map)); while(!stop()){ char c; nap(10); asm volatile("btq %2,%1; setc %0":"=q"(c):"m"(map[0]),"r"(other):"memory"); note(c);} return 0;}