__attribute__((no_instrument_function)) int f(volatile int *n) { int m; do m = *n; while (m > 4); return m; }
