enum state { IDLE, BUSY };
enum state next(int load) { return load > 3 ? BUSY : IDLE; }
