extern int init_per_cpu__level;
int *f(void) { return 0; }
