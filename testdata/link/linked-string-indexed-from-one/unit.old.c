int printk(const char *, ...);
char f(unsigned n) { printk("first\n"); return "rwx"[n - 1]; }
