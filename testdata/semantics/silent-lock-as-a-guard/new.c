#include "kernel.h"

int change(int value)
{
	int err;

	guard(mutex)(&m);
	err = work(value);
	if (err < 0)
		return err;
	return work(value + 1);
}
