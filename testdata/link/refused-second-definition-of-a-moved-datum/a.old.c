static int state = 4;
int f(int n) { return state += n; }
