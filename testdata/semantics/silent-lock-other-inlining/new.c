#include "kernel.h"

static noinline void finish(int value)
{
	work(value);
	mutex_unlock(&m);
}

int change(int value)
{
	mutex_lock(&m);
	value = work(value + 1);
	finish(value);
	return value;
}
