extern int init_per_cpu__level;
int *f(void) { return &init_per_cpu__level; }
