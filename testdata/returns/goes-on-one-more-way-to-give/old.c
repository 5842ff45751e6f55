extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *), get(void*), put(void*);
extern long count, other, a, b, m;
struct s{long st,err,c,last;}; int loop(void *d){ struct s *s=d; while(!stop()){ lock(s); nap(10); if(s->st!=3) unlock(s); else asm volatile("prefetcht0 8(%0)"::"r"(s)); stop(); } return 0;}
