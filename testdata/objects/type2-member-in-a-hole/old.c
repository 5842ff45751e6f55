struct entry { char kind; long value; };
static struct entry entry = { 1, 2 };
long get(void) { return entry.value; }
void set(long value) { entry.value = value; }
