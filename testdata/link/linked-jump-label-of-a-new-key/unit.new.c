struct key { long enabled, entries; };
static inline __attribute__((always_inline)) int on(struct key *key, int flags)
{
	asm goto("1: jmp %l[yes]\n\t.pushsection __jump_table, \"aw\"\n\t.balign 8\n\t.long 1b - .\n\t.long %l[yes] - .\n\t.quad %c0 + %c1 - .\n\t.popsection" : : "i" (key), "i" (flags) : : yes);
	return 0;
yes:
	return 1;
}
static struct key fresh = { 1 };
int f(int n) { if (on(&fresh, 1)) return 5; return n; }
