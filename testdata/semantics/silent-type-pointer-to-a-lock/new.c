#include "kernel.h"

struct box {
	int a;
	int b;
	spinlock_t *guard;
};

int change(struct box *box)
{
	return work(box->a + box->b + 1);
}
