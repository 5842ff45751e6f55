void print(const char *);
void first(void) { print("common text\n"); }
void second(void) { print("common text\n"); }
