extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
int loop(void *d){ long n=(long)d; while(!stop()){ if(n>7) take(); nap(10); if(n>7) give(); } return 0; }