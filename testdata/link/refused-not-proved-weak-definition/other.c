int hook(int n) { return n * 2; }
