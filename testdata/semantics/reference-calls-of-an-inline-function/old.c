#include "kernel.h"

refcount_t count;

int change(int value)
{
	refcount_inc(&count);
	if (value < 0)
		return -1;
	value = work(value);
	if (refcount_dec_and_test(&count))
		work(0);
	return value;
}
