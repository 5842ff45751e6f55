#include "kernel.h"

static noinline int inner(int value)
{
	return work(value + 1);
}

int change(int value)
{
	return inner(value) + inner(value + 2);
}
