extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *), get(void*), put(void*);
extern long count, other, a, b, m;
int loop(void *d){ while(!stop()){ take(); nap(10); asm volatile("clflushopt (%0)"::"r"(d):"memory"); note((long)d);} return 0;}
