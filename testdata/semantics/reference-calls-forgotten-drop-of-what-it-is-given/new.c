#include "kernel.h"

int change(struct device *given, int value)
{
	if (work(value)) {
		put_device(given);
		return -1;
	}
	put_device(given);
	return 0;
}
