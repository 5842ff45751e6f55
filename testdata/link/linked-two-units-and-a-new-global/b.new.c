int shared = 6;
int helper(int n) { return n * 3; }
int g(int n) { return n; }
