extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *), get(void*), put(void*);
extern long count, other, a, b, m;
extern void pre(void*), u(void*);extern int chk1(void),chk2(void); int loop(void *o){ pre(o); for(;;){ get(o); nap(10); put(o); stop();} }
