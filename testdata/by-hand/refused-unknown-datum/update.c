#include <linux/seq_file.h>
#include <lucos.h>

static int new_version_proc_show(struct seq_file *m, void *v)
{
	return 0;
}
LUCOS_REPLACE(version_proc_show, new_version_proc_show);

static long new_datum;
LUCOS_DATUM(no_such_datum, new_datum);
static long new_function;
LUCOS_DATUM(version_proc_show, new_function);
