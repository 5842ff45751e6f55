struct descriptor { const char *format; int line; };
void debug(struct descriptor *);
void run(void) { static struct descriptor descriptor = { "new", 5 }; debug(&descriptor); }
void other(void) { static struct descriptor descriptor = { "same", 6 }; debug(&descriptor); }
