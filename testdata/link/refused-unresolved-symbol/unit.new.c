int of_a_module(int);
int f(int n) { return of_a_module(n); }
