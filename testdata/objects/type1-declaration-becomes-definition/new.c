struct hidden { int a; long b; };
int look(struct hidden *hidden) { return hidden ? hidden->a : -1; }
