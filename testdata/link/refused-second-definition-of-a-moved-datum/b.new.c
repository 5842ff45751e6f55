int state = 4;
int g(int n) { return n + 1; }
