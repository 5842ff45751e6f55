#include <linux/minmax.h>
#include <lucos.h>

/* Behind the generated steps: what the old counter cannot hold is shown as the most that it can. */
static void to_old(const struct lucos_sync *sync)
{
	*(unsigned int *)sync->to = min(*(const unsigned long *)sync->from, (unsigned long)UINT_MAX);
}
LUCOS_SYNC_TO_OLD(khugepaged_pages_collapsed, to_old);
