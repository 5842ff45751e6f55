extern int table[];
int read_table(int index) { return table[index]; }
