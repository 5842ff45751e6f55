enum state { IDLE, WAITING, BUSY, STATES }; enum state state; enum { BIT_B = 4, BIT_A = 1 }; int bits(void) { return BIT_A | BIT_B; }
