#include "kernel.h"

int change(int value)
{
	int err;

	if (mutex_lock_killable(&m))
		return -4;
	err = work(value);
	if (err < 0) {
		mutex_unlock(&m);
		return err;
	}
	err = work(value + 1);
	mutex_unlock(&m);
	return err;
}
