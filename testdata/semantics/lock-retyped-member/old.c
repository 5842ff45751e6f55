#include "kernel.h"

struct box {
	int a;
	struct mutex lock;
};

int change(struct box *box)
{
	return work(box->a);
}
