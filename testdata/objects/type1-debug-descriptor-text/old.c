struct descriptor { const char *format; int line; };
void debug(struct descriptor *);
void run(void) { static struct descriptor descriptor = { "old", 3 }; debug(&descriptor); }
void other(void) { static struct descriptor descriptor = { "same", 4 }; debug(&descriptor); }
