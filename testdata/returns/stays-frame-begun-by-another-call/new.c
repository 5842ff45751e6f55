extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
struct w { long pad[8]; long x; }; extern void init_a(struct w*), init_b(struct w*), fini(struct w*); extern long f(struct w*); extern void init(struct w*,long);
int loop(void *d){ struct w w; init_b(&w); while(!stop()){ nap(10); fini(&w);} return 0;}