enum state { IDLE, BUSY, STATES }; enum state state; enum { BIT_A = 1, BIT_B = 2 }; int bits(void) { return BIT_A | BIT_B; }
