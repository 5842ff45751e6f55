extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
struct s{long a,b;}; extern struct s g(long); int loop(void *d){ long y=g(2).b; while(!stop()){ nap(10); note(y);} return 0;}