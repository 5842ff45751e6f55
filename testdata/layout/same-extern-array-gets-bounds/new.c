int table[4] = { 1, 2 };
int read_table(int index) { return table[index]; }
