int slots[4];
int slot(int n) { return slots[n]; }
