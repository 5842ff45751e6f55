/* A lock prefix, an indirect call, a return; and what a guest can go without. */
extern int counter;
#define AT(section) "\n\t.pushsection " section ", \"a\"\n\t.balign 4\n\t.long 1b - .\n\t.popsection"
int f(int n)
{
	asm volatile("1: lock addl $1, %0" AT(".smp_locks") : "+m"(counter));
	asm volatile("1: call __x86_indirect_thunk_rax" AT(".retpoline_sites") AT(".call_sites") : : "a"(0));
	asm volatile("1: jmp __x86_return_thunk" AT(".return_sites") AT(".discard.reachable"));
	return n + 1;
}
static const void *format __attribute__((used, section(".printk_index"))) = f;
static const void *seal __attribute__((used, section(".ibt_endbr_seal"))) = f;
static const void *inject __attribute__((used, section("_error_injection_whitelist"))) = f;
static const void *address __attribute__((used, section(".discard.addressable"))) = f;
