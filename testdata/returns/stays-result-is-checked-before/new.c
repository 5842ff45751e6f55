extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
int loop(void *d){ long n=(long)d; if(n<=0) return 0; nap(10); return n>0?n:0; }