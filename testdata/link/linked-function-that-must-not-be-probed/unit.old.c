int f(int n) { return n * 3; }
static unsigned long probe __attribute__((used, section("_kprobe_blacklist"))) = (unsigned long)f;
