#include <linux/bitops.h>
#include <lucos.h>

extern unsigned long gate;

/* The second way out of the old version leaves it shut, and so does nobody else. */
static void leave(const struct lucos_transition *transition)
{
	if ((int)transition->regs->ax < 0)
		clear_bit(0, &gate);
}
LUCOS_TRANSITION(pass, leave);
