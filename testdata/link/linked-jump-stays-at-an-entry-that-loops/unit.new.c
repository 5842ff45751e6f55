void use(long);
void spin(volatile long *p) { while (*p) { } use(1); }
