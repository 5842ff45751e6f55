extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
asm(".section .text.loop,\"ax\",@progbits\n.globl loop\n.type loop,@function\nloop:\npush %rbx\npush %r12\nmov %rdi,%rbx\nmov %rsi,%r12\nmov %r12,%rax\ncall __get_user_8\nmov %rdx,%rbx\n1: mov $10,%edi\ncall nap\nmov %rbx,%rdi\ncall note\ncall stop\ntest %eax,%eax\nje 1b\npop %r12\npop %rbx\nret\n.size loop,.-loop\n.text\n");