#include "kernel.h"

static noinline void really_lock(spinlock_t *lock)
{
	_raw_spin_lock(&lock->rlock);
	work(1);
}

static __always_inline void rq_lock(spinlock_t *lock)
{
	really_lock(lock);
}

int change(int value)
{
	rq_lock(&s);
	if (work(value))
		return 1;
	value = work(value + 1);
	spin_unlock(&s);
	return value;
}
