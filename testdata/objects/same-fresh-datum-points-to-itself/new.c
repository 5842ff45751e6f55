struct list { struct list *next, *prev; };
void use(struct list *);

void run(void) { static struct list _rs = { &_rs, &_rs }; use(&_rs); }
