static int count = 3;
int h(int n) { count += n; return count; }
