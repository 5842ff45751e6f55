extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *), get(void*), put(void*);
extern long count, other, a, b, m;
int loop(void *d){ long n=(long)d; while(!stop()){ nap(10); stop(); if(other!=1) give(); stop(); note(n); } return 0;}
