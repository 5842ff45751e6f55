#include "kernel.h"

struct box {
	int a;
	struct rw_semaphore lock;
};

int change(struct box *box)
{
	return work(box->a + 1);
}
