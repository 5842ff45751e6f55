extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern void lock(void *), unlock(void *);
extern long count, other, a, b, m;
asm(".section .text.loop,\"ax\",@progbits\n.globl loop\n.type loop,@function\nloop:\nsub $120,%rsp\nmov $1,%eax\nmov %rsp,%rdi\nmov $8,%ecx\nrep stosq\n1: mov $10,%edi\ncall nap\nmov %rsp,%rdi\ncall note\ncall stop\ntest %eax,%eax\nje 1b\nadd $120,%rsp\nret\n.size loop,.-loop\n.text\n");