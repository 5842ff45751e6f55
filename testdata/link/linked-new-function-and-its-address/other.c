void take(int (*f)(int)) { f(1); }
