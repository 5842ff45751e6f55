static const char *names[] = { "a", "b" };
const char *name(int n) { return names[n & 1]; }
int twice(int n) { return 2 * n; }
