#include "kernel.h"

int change(int value)
{
	int err = -22;

	if (value < 0)
		goto out;
	mutex_lock(&m);
	err = work(value);
	if (err < 0)
		goto unlock;
	err = work(value + 1);
unlock:
	mutex_unlock(&m);
out:
	return err;
}
