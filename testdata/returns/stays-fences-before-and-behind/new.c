extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
int loop(void *d){ while(!stop()){ asm volatile("mfence":::"memory"); nap(10); asm volatile("mfence":::"memory"); } return 0; }