int f(int n) { asm volatile("1: ud2\n\t.pushsection __bug_table, \"aw\"\n2: .long 1b - .\n\t.long 0\n\t.word 1\n\t.word 0\n\t.popsection"); return n; }
