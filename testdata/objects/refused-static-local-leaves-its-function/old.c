int next(int n) { static int count; count += n; return count; }
