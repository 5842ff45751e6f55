void complain(int n) { }
