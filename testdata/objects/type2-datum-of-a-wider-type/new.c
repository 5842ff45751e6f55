struct count { long hits; int misses; };
static struct count total = { 1, 2 };
int hit(void) { return ++total.hits; }
int miss(void) { return ++total.misses; }
