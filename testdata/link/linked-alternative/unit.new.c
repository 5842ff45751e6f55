#define ALTERNATIVE(feature, new) asm volatile("771: .byte 0x0f,0x1f,0x44,0,0\n772:\n\t.pushsection .altinstructions, \"a\"\n\t.long 771b - .\n\t.long 774f - .\n\t.word " #feature "\n\t.byte 772b - 771b\n\t.byte 775f - 774f\n\t.popsection\n\t.pushsection .altinstr_replacement, \"ax\"\n774: " new "\n775:\n\t.popsection" ::: "memory")
int f(int n) { ALTERNATIVE(10, "call slow"); return n + 1; }
int g(int n) { ALTERNATIVE(11, "lfence"); return n + 1; }
