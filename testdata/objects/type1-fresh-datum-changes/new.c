struct limit { int interval, burst; };
int limited(struct limit *);
int run(void) { static struct limit _rs = { 5, 20 }; return limited(&_rs); }
