extern int state;
int f(int n) { return state += 2 * n; }
