#include "kernel.h"

int change(int value)
{
	int err;

	mutex_lock(&m);
	err = work(value);
	if (err < 0) {
		mutex_unlock(&m);
		return err;
	}
	if (work(value) > 7) {
		mutex_unlock(&m);
		return -7;
	}
	err = work(value + 1);
	mutex_unlock(&m);
	return err;
}
