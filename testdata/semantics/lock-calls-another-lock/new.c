#include "kernel.h"

int change(int value)
{
	mutex_lock(&m);
	spin_lock(&s);
	value = work(value);
	spin_unlock(&s);
	mutex_unlock(&m);
	return value;
}
