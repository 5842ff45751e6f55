struct tracepoint { const char *name; long key; };
struct tracepoint __tracepoint_checked __attribute__((section("__tracepoints"))) = { "checked" };
int check(int n) { return n; }
