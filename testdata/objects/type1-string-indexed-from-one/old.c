char flag(unsigned n) { return n ? "old flags"[n - 1] : ' '; }
int same(unsigned n) { return "abcdefgh"[n - 3]; }
