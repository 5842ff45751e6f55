extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern void f(void), g(void);
extern long count, other, a, b, m;
struct s{long phase,err,c,last; long *p,*q;};
int loop(void*d){struct s*s=d; while(!stop()){ take(); give(); nap(10); s->phase^=1; } return 0;}