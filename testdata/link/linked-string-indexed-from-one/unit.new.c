int printk(const char *, ...);
char f(unsigned long n) { printk("first\n"); return ("RWX" - 1)[n]; }
