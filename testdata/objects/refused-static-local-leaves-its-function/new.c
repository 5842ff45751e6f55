static int count;
int next(int n) { count += n; return count; }
int peek(void) { return count; }
