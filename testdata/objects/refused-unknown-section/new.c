struct tracepoint { const char *name; };
__attribute__((section("__tracepoints"), used)) static struct tracepoint point = { "check" };
int check(int n) { return n + (point.name != 0); }
