struct pair { long a, b; };
extern struct pair *pairs;
void use(long);
__attribute__((noinline)) static void isra(struct pair *p, long unused) { use(p->a); use(p->a + 2); }
__attribute__((noinline)) static long constant(long a, long b) { use(a); return a * b - 6; }
void first(void) { isra(pairs, 1); }
long second(long n) { return constant(n, 7); }
long third(long n) { return constant(n + 1, 7); }
