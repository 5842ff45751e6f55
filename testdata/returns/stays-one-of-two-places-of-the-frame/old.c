extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
asm(".section .text.loop,\"ax\",@progbits\n.globl loop\n.type loop,@function\nloop:\npush %rbp\nsub $32,%rsp\nmovq $0,(%rsp)\nmovq $0,8(%rsp)\ntest %rdi,%rdi\nje 1f\nlea 8(%rsp),%rbp\njmp 2f\n1: mov %rsp,%rbp\n2: movq $5,(%rbp)\nmov $10,%edi\ncall nap\nmov (%rsp),%rdi\ncall note\nadd $32,%rsp\npop %rbp\nret\n.size loop,.-loop\n.text\n");