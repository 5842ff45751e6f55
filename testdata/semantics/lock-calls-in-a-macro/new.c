#include "kernel.h"

#define LOCK() do { mutex_lock(&m); } while (0)
#define UNLOCK() do { mutex_unlock(&m); } while (0)
int change(int value)
{
	LOCK();
	value = work(value);
	UNLOCK();
	return value;
}
