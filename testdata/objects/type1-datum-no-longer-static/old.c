static int counter = 3;
int next(void) { return counter++; }
int other(int n) { return n; }
