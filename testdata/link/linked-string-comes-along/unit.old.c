int printk(const char *, ...);
int f(int n) { return printk("before %d\n", n); }
