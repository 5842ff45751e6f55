extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
asm(".section .text.loop,\"ax\",@progbits\n.globl loop\n.type loop,@function\nloop:\npush %rbx\nmov %rdi,%rbx\n\n1: mov $10,%edi\ncall nap\nmov %rbx,%rdi\ncall note\ncall stop\ntest %eax,%eax\nje 1b\npop %rbx\nret\n.size loop,.-loop\n.text\n");