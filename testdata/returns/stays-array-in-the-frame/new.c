extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
int loop(void *d){ long t[4]; t[0]=t[1]=t[2]=t[3]=0; t[(long)d&3]=9; while(!stop()){ nap(10); note(t[other&3]);} return 0;}