#include "kernel.h"

int change(int value)
{
	if (mutex_lock_killable(&m))
		return -4;
	if (work(value) < 0)
		goto unlock;
	work(value + 1);
unlock:
	mutex_unlock(&m);
	return 0;
}
