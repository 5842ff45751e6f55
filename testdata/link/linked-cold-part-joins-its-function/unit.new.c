__attribute__((cold)) void complain(int);
int f(int n) { if (n < 0) complain(2); return n + 3; }
