int printk(const char *, ...);
int f(int n) { return printk("in the image\n"); }
