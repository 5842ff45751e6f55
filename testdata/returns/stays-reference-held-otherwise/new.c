extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *), get(void*), put(void*);
extern long count, other, a, b, m;
extern int alive(void *), open(void*); void loop(void *o){ get(o); for(;;){ nap(10); put(o); if(!open(o)) return; note((long)o);} }
