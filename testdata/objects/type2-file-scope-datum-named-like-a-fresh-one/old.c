static struct { int interval, burst; } descriptor = { 5, 10 };
int run(void) { return descriptor.interval++ + descriptor.burst++; }
