int next(int n) { static int count; if (n > 100) return 0; count += n; return count; }
