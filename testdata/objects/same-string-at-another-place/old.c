void print(const char *);
void second(void) { print("bb\n"); }
