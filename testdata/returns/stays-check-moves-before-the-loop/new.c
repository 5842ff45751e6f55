extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
int loop(void *d){ unsigned long n=(unsigned long)d; if(n>=64) return -22; nap(10); note(n<64?n:63); return 0;}