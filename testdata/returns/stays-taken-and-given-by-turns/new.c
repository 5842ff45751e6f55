extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *), get(void*), put(void*);
extern long count, other, a, b, m;
struct s{int phase;}; int loop(void *d){ struct s *s=d; while(!stop()){ if(s->phase) give(); else take(); nap(10); s->phase ^= 1; } return 0;}
