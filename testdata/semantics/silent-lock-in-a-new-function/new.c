#include "kernel.h"

static int inner(int value)
{
	int err;

	mutex_lock(&m);
	err = work(value);
	if (err < 0) {
		mutex_unlock(&m);
		return err;
	}
	err = work(value + 2);
	mutex_unlock(&m);
	return err;
}

int change(int value)
{
	return inner(value);
}
