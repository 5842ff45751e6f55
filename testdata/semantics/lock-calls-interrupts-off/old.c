#include "kernel.h"

int change(int value)
{
	unsigned long flags = 0;

	spin_lock(&s);
	value = work(value + flags);
	spin_unlock(&s);
	return value;
}
