extern long key;
int f(int n) { asm volatile("1: call trampoline\n\t.pushsection .static_call_sites, \"aw\"\n\t.long 1b - .\n\t.long %c0 - .\n\t.popsection" : : "i" (&key)); return n + 1; }
