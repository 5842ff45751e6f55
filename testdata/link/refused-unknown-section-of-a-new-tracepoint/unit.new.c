struct tracepoint { const char *name; long key; };
struct tracepoint __tracepoint_checked __attribute__((section("__tracepoints"))) = { "checked" };
int f(int n) { return n + __tracepoint_checked.key; }
