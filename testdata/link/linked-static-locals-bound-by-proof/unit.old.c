int first(int n) { static int count; count += n; return count; }
int second(int n) { static int count; count += 2 * n; return count; }
