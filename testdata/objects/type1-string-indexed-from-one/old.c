char flag(unsigned long n) { return n ? "old flags"[n - 1] : ' '; }
int same(unsigned long n) { return "abcdefgh"[n - 3]; }
