#include "kernel.h"

int change(int value)
{
	get_device(dev);
	value = work(value);
	put_device(dev);
	return value;
}
