#include <linux/errno.h>
#include <lucos.h>

static int old_ones;

static int none_is_inside(const struct lucos_context *context)
{
	return context->threads ? -EBUSY : 0;
}
LUCOS_PRE(none_is_inside);

static void count(const struct lucos_transition *transition)
{
	old_ones++;
}
LUCOS_TRANSITION(version_proc_show, count);
