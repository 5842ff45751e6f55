__attribute__((noinline)) static int hidden(int n) { return n * 3 - 1; }
int a(int n) { return hidden(n) + hidden(n + 1); }
