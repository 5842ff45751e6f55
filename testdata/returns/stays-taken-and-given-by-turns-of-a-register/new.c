extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *), get(void*), put(void*);
extern long count, other, a, b, m;
int loop(void *d){ long n=0; while(!stop()){ if(n&1) give(); else take(); nap(10); n++; note(n); } return 0;}
