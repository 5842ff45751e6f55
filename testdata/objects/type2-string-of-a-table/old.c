static const char *const names[] = { "read", "write" };
const char *name(int n) { return names[n]; }
