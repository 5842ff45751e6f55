struct mutex { long owner; void *first; };
extern void hold(void *lock);
static struct mutex lock = { 0, &lock.first };
__attribute__((section(".init.text"))) void start(void) { hold(&lock); }
long f(int n) { hold(&lock); return n; }
