struct limits { long least; unsigned long most; const char *name; unsigned on : 1, level : 4; };
static struct limits limits = { -1, 7, "large", 1, 9 };
int get(int i) { return i ? limits.most + limits.level : limits.least + limits.on; }
void set(int i) { limits.most = i; limits.level = i; }
const char *name(void) { return limits.name; }
