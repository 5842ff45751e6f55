#include "kernel.h"

int change(int value)
{
	unsigned long flags;

	local_irq_save(flags);
	value = work(value);
	local_irq_restore(flags);
	return value;
}
