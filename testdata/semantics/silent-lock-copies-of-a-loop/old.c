#include "kernel.h"

int change(int value)
{
	int i;

	for (i = 0; i < 3; i++) {
		mutex_lock(&m);
		work(i);
		mutex_unlock(&m);
	}
	return value;
}
