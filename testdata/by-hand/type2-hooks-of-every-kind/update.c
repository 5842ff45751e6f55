#include <linux/panic.h>
#include <linux/seq_file.h>
#include <linux/spinlock.h>
#include <lucos.h>

static DEFINE_SPINLOCK(lock);
static struct { long long seconds; } new_panic_timeout;

static int new_version_proc_show(struct seq_file *m, void *v)
{
	seq_printf(m, "%lld\n", new_panic_timeout.seconds);
	return 0;
}
LUCOS_REPLACE(version_proc_show, new_version_proc_show);
LUCOS_DATUM(panic_timeout, new_panic_timeout);

static void to_new(const struct lucos_sync *sync)
{
	*(long long *)sync->to = *(const int *)sync->from;
}
LUCOS_SYNC_TO_NEW(panic_timeout, to_new);

static void to_old(const struct lucos_sync *sync)
{
	*(int *)sync->to = *(const long long *)sync->from;
}
LUCOS_SYNC_TO_OLD(panic_timeout, to_old);

static int pre(const struct lucos_context *context)
{
	spin_lock(&lock);
	spin_unlock(&lock);
	return context->threads > 4 ? -EBUSY : 0;
}
LUCOS_PRE(pre);
LUCOS_UNDO_PRE(pre);

static void post(const struct lucos_context *context)
{
	WRITE_ONCE(new_panic_timeout.seconds, context->undo);
}
LUCOS_POST(post);
LUCOS_UNDO_POST(post);

static void leaves(const struct lucos_transition *transition)
{
	WRITE_ONCE(new_panic_timeout.seconds, transition->regs->ax);
}
LUCOS_TRANSITION(version_proc_show, leaves);
LUCOS_UNDO_TRANSITION_IN("fs/proc/version.c", version_proc_show, leaves);
