char flag(unsigned long n) { return n ? ("old flags" - 1)[n] : ' '; }
int same(unsigned long n) { return ("abcdefgh" - 3)[n]; }
