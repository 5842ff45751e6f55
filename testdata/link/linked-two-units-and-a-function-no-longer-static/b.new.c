int hidden(int n) { return n * 4; }
int g(int n) { return hidden(n) + hidden(n + 1); }
