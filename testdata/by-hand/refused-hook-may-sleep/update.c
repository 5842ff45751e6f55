#include <linux/seq_file.h>
#include <lucos.h>

static int new_version_proc_show(struct seq_file *m, void *v)
{
	return 0;
}
LUCOS_REPLACE(version_proc_show, new_version_proc_show);

static DEFINE_MUTEX(mutex);

static noinline void inner(void)
{
	mutex_lock(&mutex);
	mutex_unlock(&mutex);
}

static int pre(const struct lucos_context *context)
{
	inner();
	return 0;
}
LUCOS_PRE(pre);
