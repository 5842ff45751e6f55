long level = 1;
int check(int n) { return n; }
