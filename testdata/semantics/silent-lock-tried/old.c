#include "kernel.h"

int change(int value)
{
	if (!mutex_trylock(&m))
		return -11;
	value = work(value);
	mutex_unlock(&m);
	return value;
}
