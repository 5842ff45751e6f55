struct descriptor { const char *function; const char *text; long flags; };
extern int debug(struct descriptor *descriptor);
#define DEBUG(t, n) ({ static struct descriptor __attribute__((section("__dyndbg"), used, aligned(8))) __UNIQUE_ID_ddebug##n = { __func__, t, 1 }; debug(&__UNIQUE_ID_ddebug##n); })
int f(int n) { return DEBUG("one", 11) + n; }
int g(int n) { return DEBUG("other", 12); }
int h(int n) { return n; }
