#include "kernel.h"

static noinline void finish(int value)
{
	work(value);
	mutex_unlock(&m);
}

int change(int value)
{
	mutex_lock(&m);
	if (work(value) < 0)
		return -5;
	finish(value);
	return 0;
}
