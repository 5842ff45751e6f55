struct limits { int least; unsigned most; const char *name; unsigned on : 1, level : 3; };
static struct limits limits = { -1, 5, "small", 1, 2 };
int get(int i) { return i ? limits.most + limits.level : limits.least + limits.on; }
void set(int i) { limits.most = i; limits.level = i; }
const char *name(void) { return limits.name; }
