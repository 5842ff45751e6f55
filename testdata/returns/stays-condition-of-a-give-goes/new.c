extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *), get(void*), put(void*);
extern long count, other, a, b, m;
int loop(void *d){ while(!stop()){ if(count==1) (void)*(volatile long*)&b; take(); nap(10);  if(count==1) (void)*(volatile long*)&b; give(); stop(); note(1);} return 0;}
