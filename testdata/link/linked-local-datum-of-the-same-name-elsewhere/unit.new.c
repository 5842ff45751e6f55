static int count = 1;
int f(int n) { count += 2 * n; return count; }
