struct fresh { long a; char b; };
static struct fresh fresh = { 1, 2 };
int used;
int use(void) { return used + fresh.a++; }
