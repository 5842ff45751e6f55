extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
int loop(void *d){ long n; while(!stop()){ if(count>5) take(); n=nap(10); if(count>5) give(); } return 0; }