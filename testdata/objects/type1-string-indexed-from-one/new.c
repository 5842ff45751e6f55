char flag(unsigned n) { return n ? "new flags"[n - 1] : ' '; }
int same(unsigned n) { return "abcdefgh"[n - 3]; }
