#include "kernel.h"

static void finish(int value)
{
	work(value);
	mutex_unlock(&m);
}

int change(int value)
{
	mutex_lock(&m);
	value = work(value);
	finish(value);
	return value;
}
