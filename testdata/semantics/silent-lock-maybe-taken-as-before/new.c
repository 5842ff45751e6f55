#include "kernel.h"

int change(int value, int locked)
{
	if (!locked)
		mutex_lock(&m);
	work(value + 1);
	value = work(value);
	if (!locked)
		mutex_unlock(&m);
	return value;
}
