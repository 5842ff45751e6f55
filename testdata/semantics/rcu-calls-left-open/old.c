#include "kernel.h"

int change(int value)
{
	rcu_read_lock();
	if (value < 0)
		return -1;
	value = work(value);
	rcu_read_unlock();
	return value;
}
