#include "kernel.h"

int key;

int change(int value)
{
	mutex_lock(&m);
	if (static_branch(&key)) {
		value = work(-1);
		goto unlock;
	}
	value = work(value);
unlock:
	mutex_unlock(&m);
	return value;
}
