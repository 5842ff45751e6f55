extern int stop(void);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
static __attribute__((noinline)) void nap(void){ asm volatile("incq count"::: "memory"); }
int loop(void *d){ register long x asm("rcx"); while(!stop()){ x=5; asm volatile("":"+r"(x)); nap(); asm volatile("":"+r"(x)); note(x); take(); } return 0;}