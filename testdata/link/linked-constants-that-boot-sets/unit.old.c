/* As arch/x86/include/asm/runtime-const.h has the places known. */
#define POINTER(name, into) \
	asm("movabs %1, %0\n1:\n.pushsection runtime_ptr_" #name ", \"a\"\n.long 1b - 8 - .\n.popsection" \
	    : "=r"(into) : "i"(0x0123456789abcdefUL))
#define SHIFT(name, value) \
	asm("shrl $12, %k0\n1:\n.pushsection runtime_shift_" #name ", \"a\"\n.long 1b - 1 - .\n.popsection" : "+r"(value))
unsigned int f(unsigned int n) { unsigned long most; POINTER(limit, most); SHIFT(order, n); return n < most; }
