#include "kernel.h"

int change(int value)
{
	rcu_read_lock();
	value = work(value);
	rcu_read_unlock();
	return value;
}
