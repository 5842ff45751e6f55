__attribute__((noinline)) static int one(void) { return 1; }
__attribute__((noinline)) static int two(void) { return 2; }
__attribute__((section("__handlers"), used)) static int (*handler)(void) = two;
int both(void) { return one() + 10 * two(); }
