static int limits[] = { 1, 2, 3 };
int get(int i) { return limits[i]; }
void set(int i, int value) { limits[i] = value; }
int sum(void) { return limits[0] + limits[1]; }
