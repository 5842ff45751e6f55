__attribute__((noinline)) static int hidden(int n) { return n * 5 - 1; }
int b(int n) { return hidden(n) + hidden(n + 1); }
