void slow(int n) { }
