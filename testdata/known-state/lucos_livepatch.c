// SPDX-License-Identifier: GPL-2.0
/*
 * A live patch of the kernel's own kind, for the function that a thread of lucos_state never leaves: the transition to it does not end.
 */
#include <linux/livepatch.h>
#include <linux/module.h>

static int livepatch_nap(void *data)
{
	return 0;
}

static struct klp_func funcs[] = {
	{
		.old_name = "nap",
		.new_func = livepatch_nap,
	},
	{ }
};

static struct klp_object objects[] = {
	{
		.name = "lucos_state",
		.funcs = funcs,
	},
	{ }
};

static struct klp_patch patch = {
	.mod = THIS_MODULE,
	.objs = objects,
};

static int __init patch_init(void)
{
	return klp_enable_patch(&patch);
}

static void __exit patch_exit(void)
{
}

module_init(patch_init);
module_exit(patch_exit);
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
MODULE_DESCRIPTION("A live patch that waits for a thread");
