static int count = 2;
int g(int n) { count += n; return count; }
