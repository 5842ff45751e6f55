#include "kernel.h"

int change(int value)
{
	mutex_lock(&m);
	WARN_ON(value == 3);
	BUG_ON(value == 4);
	if (value == 5)
		panic("five");
	if (work(value + 4) < 0) {
		mutex_unlock(&m);
		return -1;
	}
	value = work(value);
	mutex_unlock(&m);
	return value;
}
