#include <linux/errno.h>
#include <linux/kernel.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/utsname.h>
#include <lucos.h>

extern const char linux_proc_banner[];

/* What the guest has in /proc/sys/kernel/panic. */
#define FORBID 77
#define HANG 78
#define TAKEN_BACK 79

static int pre_ran, post_ran, last_threads = -1;

static int new_version_proc_show(struct seq_file *m, void *v)
{
	seq_printf(m, "Updated pre %d post %d threads %d ", pre_ran, post_ran, last_threads);
	seq_printf(m, linux_proc_banner, utsname()->sysname, utsname()->release, utsname()->version);
	return 0;
}
LUCOS_REPLACE(version_proc_show, new_version_proc_show);

static int pre(const struct lucos_context *context)
{
	while (READ_ONCE(panic_timeout) == HANG)
		cpu_relax();
	if (panic_timeout == FORBID || !irqs_disabled() || !current || context->size != sizeof(*context) || context->undo)
		return -EBUSY;
	pre_ran++;
	return 0;
}
LUCOS_PRE(pre);

static void post(const struct lucos_context *context)
{
	post_ran++;
	last_threads = context->threads;
}
LUCOS_POST(post);

static int undo_pre(const struct lucos_context *context)
{
	return panic_timeout == FORBID || !context->undo ? -EPERM : 0;
}
LUCOS_UNDO_PRE(undo_pre);

static void undo_post(const struct lucos_context *context)
{
	panic_timeout = TAKEN_BACK;
}
LUCOS_UNDO_POST(undo_post);
