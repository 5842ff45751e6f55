void print(const char *);
void zeroth(void) { print("another, longer text\n"); }
void first(void) { print("common text\n"); }
void second(void) { print("not so common text\n"); }
