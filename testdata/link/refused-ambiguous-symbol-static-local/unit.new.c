int first(int n) { return n; }
int second(int n) { static int count; count += n; return count; }
