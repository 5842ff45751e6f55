int printk(const char *, ...);
char f(unsigned long n) { printk("first\n"); return ("rwx" - 1)[n]; }
