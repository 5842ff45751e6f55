extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
asm(".section .text.loop,\"ax\",@progbits\n.globl loop\n.type loop,@function\nloop:\npush %rbx\nmov %rdi,%rbx\n661: .byte 0x0f,0x1f,0x00\n662:\n.pushsection .altinstructions,\"a\"\n.long 661b-.\n.long 663f-.\n.word 1\n.byte 662b-661b\n.byte 664f-663f\n.popsection\n.pushsection .altinstr_replacement,\"ax\"\n663: and %rcx,%rbx\n664:\n.popsection\n1: mov $10,%edi\ncall nap\nmov %rbx,%rdi\ncall note\ncall stop\ntest %eax,%eax\nje 1b\npop %rbx\nret\n.size loop,.-loop\n.text\n");