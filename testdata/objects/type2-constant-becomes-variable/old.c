static const int limits[] = { 1, 2, 3 };
int get(int i) { return limits[i]; }
int sum(void) { return limits[0] + limits[1]; }
