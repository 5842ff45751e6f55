#include "kernel.h"

int change(int value)
{
	unsigned long flags = 0;

	spin_lock_irqsave(&s, flags);
	value = work(value + flags);
	spin_unlock_irqrestore(&s, flags);
	return value;
}
