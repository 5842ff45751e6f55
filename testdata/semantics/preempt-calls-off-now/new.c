#include "kernel.h"

int change(int value)
{
	preempt_disable();
	value = work(value);
	preempt_enable();
	return work(value);
}
