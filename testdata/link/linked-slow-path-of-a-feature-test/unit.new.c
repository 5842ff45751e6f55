#define HAS(feature) asm goto("1: jmp 6f\n2:\n\t.pushsection .altinstructions, \"a\"\n\t.long 1b - .\n\t.long 3f - .\n\t.word " #feature "\n\t.byte 2b - 1b\n\t.byte 0\n\t.popsection\n\t.pushsection .altinstr_replacement, \"ax\"\n3:\n\t.popsection\n\t.pushsection .altinstr_aux, \"ax\"\n6:\ttestb $4, caps+2(%%rip)\n\tjnz %l0\n\tjmp %l1\n\t.popsection" :::: yes, no)
int before(int n) { HAS(3); yes: return n + 7; no: return n - 7; }
int f(int n) { HAS(4); yes: return n; no: return n * 5; }
