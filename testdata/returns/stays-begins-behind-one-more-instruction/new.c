extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *), get(void*), put(void*);
extern long count, other, a, b, m;
extern void pre(void*), u(void*);extern int chk1(void),chk2(void); int loop(void *o){ get(o); for(;;){ nap(10); unlock(o); note(3); } }
