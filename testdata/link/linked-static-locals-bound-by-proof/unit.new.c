int before(int n) { static int count; count -= n; return count; }
int first(int n) { static int count; if (n < 0) return -1; count += n; return count; }
int second(int n) { static int count; if (n < 0) return -2; count += 2 * n; return count; }
