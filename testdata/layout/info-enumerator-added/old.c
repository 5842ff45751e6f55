enum state { IDLE, BUSY }; enum state state;
