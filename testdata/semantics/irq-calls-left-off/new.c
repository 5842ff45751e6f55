#include "kernel.h"

int change(int value)
{
	unsigned long flags;

	local_irq_save(flags);
	if (value < 0) {
		local_irq_restore(flags);
		return -1;
	}
	value = work(value);
	local_irq_restore(flags);
	return value;
}
