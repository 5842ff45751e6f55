int first(int n) { static int count; count += n; return count; }
int second(int n) { return n; }
