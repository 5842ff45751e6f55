#include "kernel.h"

#define LOCK() do { } while (0)
#define UNLOCK() do { } while (0)
int change(int value)
{
	LOCK();
	value = work(value);
	UNLOCK();
	return value;
}
