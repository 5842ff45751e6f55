#include "kernel.h"

int change(int value)
{
	if (!mutex_trylock(&m))
		return -11;
	if (value > 9) {
		mutex_unlock(&m);
		return -9;
	}
	value = work(value);
	mutex_unlock(&m);
	return value;
}
