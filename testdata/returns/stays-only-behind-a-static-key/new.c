extern int stop(void);
extern long nap(long ms);
extern void note(long value);
extern void take(void), give(void);
extern long count, other;

struct key { long enabled; };
extern struct key key;
static inline __attribute__((always_inline)) int is_on(void)
{
	asm goto("1: .byte 0x0f, 0x1f, 0x44, 0, 0\n"
		 ".pushsection __jump_table, \"aw\"\n"
		 ".balign 8\n"
		 ".long 1b - ., %l[yes] - .\n"
		 ".quad key - .\n"
		 ".popsection\n" : : : : yes);
	return 0;
yes:
	return 1;
}

int loop(void *data)
{
	long *mine = data;

	while (!stop()) {
		if (is_on())
			note(1);
		nap(10);
		if (is_on())
			take();
	}
	return 0;
}
