__attribute__((noinline)) static int hidden(int n) { return n * 3 - 1; }
int other(int n) { return hidden(n) + hidden(n + 1); }
