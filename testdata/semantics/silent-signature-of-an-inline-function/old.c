#include "kernel.h"

static __always_inline int inner(int value)
{
	return work(value + 1);
}

int change(int value)
{
	return inner(value) + inner(value + 2);
}
