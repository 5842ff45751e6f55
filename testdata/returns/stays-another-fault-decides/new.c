extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern void f(void), g(void);
extern long count, other, a, b, m;
struct s{long phase,err,c,last; long *p,*q;};
#define EX(l) ".pushsection __ex_table,\"a\"\n.balign 4\n.long 1b-.\n.long " l "-.\n.long 3\n.popsection\n"
int loop(void*d){ for(;;){ asm goto volatile("1: mov b(%%rip),%%rax\n test %%rax,%%rax\n"EX("%l[bad]"):::"rax","memory":bad); asm volatile("lock incq count":::"memory"); goto out; bad: asm volatile("lock decq count":::"memory"); out: nap(10); } }