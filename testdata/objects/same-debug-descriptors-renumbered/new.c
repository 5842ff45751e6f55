struct descriptor { const char *function; const char *text; long line; };
extern int debug(struct descriptor *descriptor);
#define DEBUG(t, n) ({ static struct descriptor __attribute__((section("__dyndbg"), used, aligned(8))) __UNIQUE_ID_ddebug##n = { __func__, t, __LINE__ }; debug(&__UNIQUE_ID_ddebug##n); })

int f(int n) { return DEBUG("one", 14) + n; }
