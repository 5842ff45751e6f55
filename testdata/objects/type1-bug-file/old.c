#define WARN(file) asm volatile("1: ud2\n\t.pushsection __bug_table, \"aw\"\n2: .long 1b - .\n\t.long %c0 - .\n\t.word 12\n\t.word 1\n\t.popsection" : : "i" (file))
void check(int n) { if (n) WARN("a.c"); }
