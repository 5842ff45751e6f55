struct descriptor;
int debug(struct descriptor *descriptor) { return 0; }
