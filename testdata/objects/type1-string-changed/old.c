void print(const char *);
void report(void) { print("old text\n"); }
void other(void) { print("same text\n"); }
