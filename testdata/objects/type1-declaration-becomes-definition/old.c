struct hidden;
int look(struct hidden *hidden) { return hidden != 0; }
