long level = 1;
int check(int n) { return n; }
static const struct { const char *name; long *value; } __param_level __attribute__((used, section("__param"))) = { "depth", &level };
