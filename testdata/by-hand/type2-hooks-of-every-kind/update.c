#include <linux/errno.h>
#include <linux/spinlock.h>
#include <lucos.h>

static DEFINE_SPINLOCK(lock);
static struct { long count; } new_family_registered;

static void new_taskstats_exit(struct task_struct *tsk, int group_dead)
{
	if (new_family_registered.count && group_dead)
		new_family_registered.count++;
}
LUCOS_REPLACE(taskstats_exit, new_taskstats_exit);
LUCOS_DATUM(family_registered, new_family_registered);

static void to_new(const struct lucos_sync *sync)
{
	*(long *)sync->to = *(const int *)sync->from;
}
LUCOS_SYNC_TO_NEW(family_registered, to_new);

static void to_old(const struct lucos_sync *sync)
{
	*(int *)sync->to = *(const long *)sync->from;
}
LUCOS_SYNC_TO_OLD(family_registered, to_old);

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
	WRITE_ONCE(new_family_registered.count, context->undo);
}
LUCOS_POST(post);
LUCOS_UNDO_POST(post);

static void leaves(const struct lucos_transition *transition)
{
	WRITE_ONCE(new_family_registered.count, transition->regs->ax);
}
LUCOS_TRANSITION(taskstats_exit, leaves);
LUCOS_UNDO_TRANSITION_IN("kernel/taskstats.c", taskstats_exit, leaves);
