static const char *const names[] = { "read", "append" };
const char *name(int n) { return names[n]; }
