#include "kernel.h"

int change(int value)
{
	int err;

	work(3);
	mutex_lock(&m);
	err = work(value);
	if (err < 0) {
		mutex_unlock(&m);
		return err;
	}
	mutex_unlock(&m);
	err = work(value + 1);
	return err;
}
