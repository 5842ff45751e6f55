#include <linux/seq_file.h>
#include <lucos.h>

static int new_version_proc_show(struct seq_file *m)
{
	return m->count != 0;
}
LUCOS_REPLACE(version_proc_show, new_version_proc_show);
