void hold(void *lock) { }
