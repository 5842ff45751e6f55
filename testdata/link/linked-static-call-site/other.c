long key;
void trampoline(void) { }
