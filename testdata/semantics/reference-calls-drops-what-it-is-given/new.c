#include "kernel.h"

void change(struct device *given)
{
	work(1);
	put_device(given);
}
