int added = 5;
int zeros[10];
static const int table[] = { 3, 1, 4, 1, 5, 9, 2, 6 };
static int *pointer = &added;
int f(int n) { pointer += n; return *pointer + zeros[n] + table[n & 7]; }
