/* A signature is reported beside the layouts and changes none. */
static int helper(int x) { return x * 3; }
int entry(const char *s, int (*cb)(void)) { return helper(*s) + cb(); }
