#include <linux/seq_file.h>
#include <lucos.h>

static int one(struct seq_file *m, void *v)
{
	return 1;
}
LUCOS_REPLACE(version_proc_show, one);

static int two(struct seq_file *m, void *v)
{
	return 2;
}
LUCOS_REPLACE_IN("fs/proc/version.c", version_proc_show, two);
