#include "kernel.h"

int change(int value)
{
	value = work(value);
	return work(value);
}
