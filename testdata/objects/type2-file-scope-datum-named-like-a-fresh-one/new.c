static struct { int interval, burst; } descriptor = { 5, 20 };
int run(void) { return descriptor.interval++ + descriptor.burst++; }
