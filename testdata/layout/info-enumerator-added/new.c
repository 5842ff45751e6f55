enum state { IDLE, BUSY, DEAD }; enum state state;
