extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *), get(void*), put(void*);
extern long count, other, a, b, m;
struct w{long x,y;}; extern struct w *volatile pub; void loop(void *d){ volatile struct w w; w.x=w.y=0; stop(); pub=&w; asm volatile("":::"memory"); nap(10); w.y=2; pub=0; }
