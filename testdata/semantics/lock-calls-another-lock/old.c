#include "kernel.h"

int change(int value)
{
	mutex_lock(&m);
	value = work(value);
	mutex_unlock(&m);
	return value;
}
