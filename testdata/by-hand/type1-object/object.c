#include <linux/seq_file.h>
#include <lucos.h>

static noinline void text(struct seq_file *m)
{
	seq_puts(m, "Updated\n");
}

static int new_version_proc_show(struct seq_file *m, void *v)
{
	text(m);
	WARN_ON_ONCE(!v);
	return 0;
}
LUCOS_REPLACE(version_proc_show, new_version_proc_show);
