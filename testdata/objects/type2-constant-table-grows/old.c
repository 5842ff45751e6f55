const char *const texts[] = { "one", "two" };
const char *text(int i) { return texts[i]; }
