extern void (*operations[4])(void);
#define CALL(operation) asm volatile("771: call *operations+8*" #operation "(%%rip)\n772:\n\t.pushsection .parainstructions, \"a\"\n\t.balign 8\n\t.quad 771b\n\t.byte " #operation "\n\t.byte 772b - 771b\n\t.balign 8\n\t.popsection" : : "m"(operations) : "memory")
int f(int n) { CALL(3); CALL(1); return n + 1; }
