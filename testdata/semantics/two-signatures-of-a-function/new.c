#include "kernel.h"

static noinline int inner(long value)
{
	return work(value / 3);
}

int change(int value)
{
	return inner(value) + inner(value + 2);
}
