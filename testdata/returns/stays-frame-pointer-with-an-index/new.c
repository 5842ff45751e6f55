extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
asm(".section .text.loop,\"ax\",@progbits\n.globl loop\n.type loop,@function\nloop:\npush %rbp\nsub $32,%rsp\nand $1,%edi\nmovq $0,(%rsp)\nmovq $0,8(%rsp)\nlea (%rsp,%rdi,8),%rbp\nmovq $6,(%rbp)\nmov $10,%edi\ncall nap\nmov (%rsp),%rdi\ncall note\nadd $32,%rsp\npop %rbp\nret\n.size loop,.-loop\n.text\n");