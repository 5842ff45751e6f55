extern int shared;
int helper(int);
int f(int n) { return helper(n) + shared; }
