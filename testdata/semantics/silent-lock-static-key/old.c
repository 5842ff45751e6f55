#include "kernel.h"

int key;

int change(int value)
{
	mutex_lock(&m);
	if (static_branch(&key)) {
		mutex_unlock(&m);
		return work(-1);
	}
	value = work(value);
	mutex_unlock(&m);
	return value;
}
