int printk(const char *, ...);
int f(int n) { return printk("after %d\n", n) + printk("after %d\n", n + 1); }
