#include "kernel.h"

struct other {
	int x;
	struct mutex lock;
};

struct box {
	int a;
	int b;
};

int change(struct box *box)
{
	struct other other = { .x = 1 };

	return work(other.x + box->a + box->b);
}
