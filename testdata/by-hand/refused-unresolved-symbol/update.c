#include <linux/seq_file.h>
#include <lucos.h>

static int new_version_proc_show(struct seq_file *m, void *v)
{
	return 0;
}
LUCOS_REPLACE(version_proc_show, new_version_proc_show);

extern int no_such_function(void);
int new_function(void)
{
	return no_such_function();
}
