int used;
int use(void) { return used; }
