#include <linux/seq_file.h>
#include <lucos.h>

static int new_version_proc_show(struct seq_file *m, void *v)
{
	return 0;
}
LUCOS_REPLACE(version_proc_show, new_version_proc_show);

static void to_new(const struct lucos_sync *sync)
{
	*(int *)sync->to = 0;
}
LUCOS_SYNC_TO_NEW(panic_timeout, to_new);

static void leaves(const struct lucos_transition *transition)
{
}
LUCOS_TRANSITION(cmdline_proc_show, leaves);
