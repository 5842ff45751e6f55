extern int remote;
int f(int n) { long p; asm("movq remote@GOTPCREL(%%rip), %0" : "=r" (p)); return n + p; }
