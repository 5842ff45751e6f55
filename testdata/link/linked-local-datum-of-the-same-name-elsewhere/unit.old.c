static int count = 1;
int f(int n) { count += n; return count; }
