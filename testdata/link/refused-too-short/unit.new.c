__attribute__((no_instrument_function)) int f(int n) { return n + 1; }
