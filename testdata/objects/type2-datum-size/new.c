int slots[8];
int slot(int n) { return slots[n]; }
