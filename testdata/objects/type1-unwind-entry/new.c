#define UNWIND(sp) asm volatile("1:\n\t.pushsection .orc_unwind_ip\n\t.long 1b - .\n\t.popsection\n\t.pushsection .orc_unwind\n\t.short " #sp ", 0\n\t.byte 5, 0\n\t.popsection")
int f(int n) { UNWIND(8); asm volatile("nop"); UNWIND(24); return n; }
