struct entry { char kind; int uses; long value; };
static struct entry entry = { 1, 5, 2 };
long get(void) { entry.uses++; return entry.value; }
void set(long value) { entry.value = value; }
