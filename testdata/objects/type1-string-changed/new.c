void print(const char *);
void report(void) { print("new text\n"); }
void other(void) { print("same text\n"); }
