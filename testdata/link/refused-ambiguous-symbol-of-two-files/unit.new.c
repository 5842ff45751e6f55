int hidden(int n);
int f(int n) { return hidden(n) + 1; }
