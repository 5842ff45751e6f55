#include "kernel.h"

static __always_inline int inner(long value)
{
	return work(value + 2);
}

int change(int value)
{
	return inner(value) + inner(value + 2);
}
