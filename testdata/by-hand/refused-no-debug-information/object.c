#include <linux/seq_file.h>

int new_version_proc_show(struct seq_file *m, void *v);

int new_version_proc_show(struct seq_file *m, void *v)
{
	seq_puts(m, "Updated\n");
	return 0;
}
