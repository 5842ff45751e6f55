int f(int n) { return n * 5; }
static unsigned long probe __attribute__((used, section("_kprobe_blacklist"))) = (unsigned long)f;
