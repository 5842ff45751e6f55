__attribute__((section("__handlers"), used)) static const char *name = "handler";
void print(const char *);
void run(void) { print(name); }
