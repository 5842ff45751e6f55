extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
asm(".section .text.loop,\"ax\",@progbits\n.globl loop\n.type loop,@function\nloop:\npush %rbx\nmovq $1,16(%rsp)\nmov $10,%edi\ncall nap\npop %rbx\njmp note\n.size loop,.-loop\n.text\n");