#include "kernel.h"

int change(int value)
{
	preempt_disable();
	if (value < 0) {
		preempt_enable();
		return -1;
	}
	value = work(value);
	preempt_enable();
	return value;
}
