extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern void f(void), g(void);
extern long count, other, a, b, m;
struct s{long phase,err,c,last; long *p,*q;};
int loop(void*d){struct s*s=d; while(!stop()){ if(s->phase==0) take(); nap(10); s->phase=(s->phase+1)&3; if(s->phase==2) give(); } return 0;}