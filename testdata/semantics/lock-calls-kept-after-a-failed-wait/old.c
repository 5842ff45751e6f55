#include "kernel.h"

int change(int value)
{
	if (mutex_lock_killable(&m))
		return -4;
	if (work(value) < 0)
		return -5;
	mutex_unlock(&m);
	return 0;
}
