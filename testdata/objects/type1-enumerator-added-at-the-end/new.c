enum state { IDLE, BUSY, WAITING };
enum state next(int load) { return load > 9 ? WAITING : load > 3 ? BUSY : IDLE; }
