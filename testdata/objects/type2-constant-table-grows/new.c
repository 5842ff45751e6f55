const char *const texts[] = { "1", "two", "three" };
const char *text(int i) { return texts[i]; }
