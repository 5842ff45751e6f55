#include "kernel.h"

int change(int value)
{
	value = work(value);
	synchronize_rcu();
	return work(value);
}
