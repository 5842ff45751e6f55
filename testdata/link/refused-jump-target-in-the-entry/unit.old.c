__attribute__((no_instrument_function)) int f(volatile int *n) { int m; do m = *n; while (m > 3); return m; }
