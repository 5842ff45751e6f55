int f(int n) { static const int table[] = { 1, 2, 3, 5 }; return table[n & 3] + 1; }
