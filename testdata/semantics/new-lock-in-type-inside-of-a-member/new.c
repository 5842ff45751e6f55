#include "kernel.h"

struct part {
	int x;
	struct rw_semaphore sem;
};

struct box {
	int a;
	int b;
	struct part parts[2];
};

int change(struct box *box)
{
	return work(box->a + box->b + 1);
}
