#include "kernel.h"

struct box {
	int a;
	int b;
};

int change(struct box *box)
{
	return work(box->a + box->b);
}
