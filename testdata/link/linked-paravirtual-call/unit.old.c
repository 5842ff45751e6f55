extern void (*pv_ops[4])(void);
#define CALL(operation) asm volatile("771: call *pv_ops+8*" #operation "(%%rip)\n772:\n\t.pushsection .parainstructions, \"a\"\n\t.balign 8\n\t.quad 771b\n\t.byte " #operation "\n\t.byte 772b - 771b\n\t.balign 8\n\t.popsection" : : "m"(pv_ops) : "memory")
int f(int n) { CALL(1); return n; }
