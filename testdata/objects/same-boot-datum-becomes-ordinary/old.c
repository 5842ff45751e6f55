typedef void (*call)(void);
static void start(void) { }
__attribute__((section(".initcall6.init"), used)) static call entry = start;
int check(int n) { return n; }
