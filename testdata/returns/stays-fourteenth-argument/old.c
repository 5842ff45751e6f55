extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *), get(void*), put(void*);
extern long count, other, a, b, m;
extern void lk(long,long,long,long,long,long,long,long,long,long,long,long,long,long), ul(long,long,long,long,long,long,long,long,long,long,long,long,long,long); int loop(void *o){ while(!stop()) {lk(0,0,0,0,0,0,1,1,1,1,1,1,1,1); nap(10); ul(0,0,0,0,0,0,1,1,1,1,1,1,1,1);} return 0;}
