enum state { IDLE, BUSY };
struct item { enum state state; };
int busy(struct item *i) { return i->state == BUSY; }
