extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *), get(void*), put(void*);
extern long count, other, a, b, m;
extern int alive(void *), open(void*); extern void drop(void *); void loop(void *o){ get(o); for(;;){ if(!alive(o)) {drop(o); return;} take(); nap(10); put(o);} }
