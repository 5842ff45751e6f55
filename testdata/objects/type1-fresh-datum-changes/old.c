struct limit { int interval, burst; };
int limited(struct limit *);
int run(void) { static struct limit _rs = { 5, 10 }; return limited(&_rs); }
