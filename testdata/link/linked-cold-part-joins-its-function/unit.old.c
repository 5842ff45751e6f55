__attribute__((cold)) void complain(int);
int f(int n) { if (n < 0) complain(1); return n + 3; }
