/* What objtool makes of the padding before a function. */
#define PADDED(name) asm(".pushsection .text." #name ",\"ax\"\n.type __pfx_" #name ", @function\n__pfx_" #name ":\n.skip 16, 0x90\n" \
	".size __pfx_" #name ", 16\n.globl " #name "\n.type " #name ", @function\n" #name ":\nmov $" VALUE ", %eax\nret\n.size " #name ", . - " #name "\n.popsection")
#define VALUE "1"
PADDED(one);
int other(void) { return 3; }
