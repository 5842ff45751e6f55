#include <linux/seq_file.h>
#include <lucos.h>

static int new_version_proc_show(struct seq_file *m, void *v)
{
	return 0;
}
LUCOS_REPLACE(version_proc_show, new_version_proc_show);

static long new_panic_timeout;
LUCOS_DATUM(panic_timeout, new_panic_timeout);

static void to_new(const struct lucos_sync *sync)
{
	*(long *)sync->to = *(const int *)sync->from;
}
LUCOS_SYNC_TO_NEW(panic_timeout, to_new);

static void to_old(const struct lucos_sync *sync)
{
	*(int *)sync->to = *(const long *)sync->from;
}
LUCOS_SYNC_TO_OLD(panic_timeout, to_old);
