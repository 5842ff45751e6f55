long allocate(void) { return 7; }
