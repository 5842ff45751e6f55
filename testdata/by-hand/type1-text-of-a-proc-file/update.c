#include <linux/seq_file.h>
#include <linux/utsname.h>
#include <lucos.h>

extern const char linux_proc_banner[];

static int new_version_proc_show(struct seq_file *m, void *v)
{
	seq_puts(m, "Updated ");
	seq_printf(m, linux_proc_banner, utsname()->sysname, utsname()->release, utsname()->version);
	return 0;
}
LUCOS_REPLACE(version_proc_show, new_version_proc_show);
