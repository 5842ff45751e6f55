#include <linux/printk.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>
#include <lucos.h>

static DEFINE_SPINLOCK(lock);
static struct { int force; } new_poweroff_force;

static void new_orderly_poweroff(bool force)
{
	if (force)
		new_poweroff_force.force = 1;
}
LUCOS_REPLACE(orderly_poweroff, new_orderly_poweroff);

static void new_poweroff_work_func(struct work_struct *work)
{
	pr_emerg("asked to power off: %d\n", new_poweroff_force.force);
}
LUCOS_REPLACE(poweroff_work_func, new_poweroff_work_func);
LUCOS_DATUM(poweroff_force, new_poweroff_force);

static void to_new(const struct lucos_sync *sync)
{
	*(int *)sync->to = *(const bool *)sync->from;
}
LUCOS_SYNC_TO_NEW(poweroff_force, to_new);

static void to_old(const struct lucos_sync *sync)
{
	*(bool *)sync->to = *(const int *)sync->from != 0;
}
LUCOS_SYNC_TO_OLD(poweroff_force, to_old);

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
	WRITE_ONCE(new_poweroff_force.force, context->undo);
}
LUCOS_POST(post);
LUCOS_UNDO_POST(post);

static void leaves(const struct lucos_transition *transition)
{
	WRITE_ONCE(new_poweroff_force.force, transition->regs->ax);
}
LUCOS_TRANSITION(orderly_poweroff, leaves);
LUCOS_UNDO_TRANSITION_IN("kernel/reboot.c", poweroff_work_func, leaves);
