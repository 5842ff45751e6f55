int printk(const char *, ...);
char f(unsigned n) { printk("first\n"); return "RWX"[n - 1]; }
