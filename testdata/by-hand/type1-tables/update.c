#include <linux/bug.h>
#include <linux/seq_file.h>
#include <linux/static_key.h>
#include <linux/uaccess.h>
#include <lucos.h>

DECLARE_STATIC_KEY_FALSE(sched_schedstats);

static int new_version_proc_show(struct seq_file *m, void *v)
{
	int value;

	if (!user_access_begin((void __user *)8, 4))
		return -EFAULT;
	unsafe_get_user(value, (int __user *)8, fault);
fault:
	user_access_end();
	WARN_ON_ONCE(!m);
	pr_debug("shown\n");
	if (static_branch_unlikely(&sched_schedstats))
		seq_puts(m, "counted\n");
	return 0;
}
LUCOS_REPLACE(version_proc_show, new_version_proc_show);
