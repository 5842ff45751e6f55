int f(int n) { asm volatile("1: nop\n\t.pushsection .kcfi_traps, \"a\"\n\t.long 1b - .\n\t.popsection"); return n; }
