#include "kernel.h"

int change(int value)
{
	get_device(dev);
	if (value < 0) {
		put_device(dev);
		return -1;
	}
	value = work(value);
	put_device(dev);
	return value;
}
