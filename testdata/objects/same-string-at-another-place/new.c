void print(const char *);
static inline void unused(void) { print("a longer text that nobody prints\n"); }
extern void gone(void);
void second(void) { if (0) gone(); print("bb\n"); }
