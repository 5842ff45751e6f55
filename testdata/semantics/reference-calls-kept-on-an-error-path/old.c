#include "kernel.h"

int change(int value)
{
	int err;

	get_device(dev);
	err = work(value);
	if (err)
		goto out;
	err = work(value + 1);
	put_device(dev);
out:
	return err;
}
