extern long allocate(void);
static long pool;
__attribute__((section(".init.text"))) void start(void) { pool = allocate(); }
long f(int n) { return n + pool; }
