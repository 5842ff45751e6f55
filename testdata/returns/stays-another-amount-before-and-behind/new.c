extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
int loop(void *d){ while(!stop()){ __atomic_fetch_add(&count,other+1,5); nap(10); __atomic_fetch_sub(&count,other+1,5);} return 0; }