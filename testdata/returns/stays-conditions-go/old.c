extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *), get(void*), put(void*);
extern long count, other, a, b, m;
int loop(void *d){ volatile int z[40]; z[39]=0; while(!stop()){ if(count!=1) take(); nap(10); if(count!=1) give(); stop(); } return 0;}
