// SPDX-License-Identifier: GPL-2.0-only
/*
 * The part of Lucos that runs inside the guest, for a moment: it asks the kernel for memory, makes new code known there, and
 * takes both back.
 *
 * Comes in: a struct lucos_request that the host has filled, and an interrupt. Decided: nothing that is not in the request.
 * Goes out: the request's result. The object is placed afresh for every request and is gone afterwards, so it keeps nothing
 * and nothing of it may stay referenced once the worker has returned.
 *
 * New code becomes known as a module: then the kernel's own lookups of exception, bug, ORC and symbol tables find it, its
 * jump labels follow their keys, and its messages can be switched. It has no file, no /sys/module folder and no parameters.
 */
#include <linux/dynamic_debug.h>
#include <linux/elf.h>
#include <linux/extable.h>
#include <linux/ftrace.h>
#include <linux/irq_work.h>
#include <linux/jump_label.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/lockdep.h>
#include <linux/module.h>
#include <linux/moduleloader.h>
#include <linux/notifier.h>
#include <linux/rculist.h>
#include <linux/set_memory.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/version.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>
#include <asm/unwind.h>
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 10, 0)
#include <linux/execmem.h>
#endif
/* The module loader's own declarations: mod_tree, module_mutex, modules, find_module_all. */
#include <../kernel/module/internal.h>

#include "request.h"

/* kernel/module/main.c and lib/bug.c; both are static there. */
extern struct blocking_notifier_head module_notify_list;
#ifdef CONFIG_GENERIC_BUG
extern struct list_head module_bug_list;
#endif

static void lucos_worker(struct work_struct *work);
void lucos_support_interrupt(struct irq_work *work);

/* Not in .bss: the host fills it in before it places the object. */
struct lucos_request lucos_support_request __section(".data") = {};

/* The host puts it on a processor's list: it is claimed from the beginning (kernel/irq_work.c, irq_work_claim). */
struct irq_work lucos_support_work = __IRQ_WORK_INIT(lucos_support_interrupt, IRQ_WORK_CLAIMED | CSD_TYPE_IRQ_WORK);

static DECLARE_WORK(lucos_work, lucos_worker);

const u32 lucos_support_abi[LUCOS_FACTS] = {
	[LUCOS_FACT_ABI] = LUCOS_ABI,
	[LUCOS_FACT_REQUEST_SIZE] = sizeof(struct lucos_request),
	[LUCOS_FACT_NEXT] = offsetof(struct irq_work, node.llist.next),
	[LUCOS_FACT_FLAGS] = offsetof(struct irq_work, node.a_flags),
	[LUCOS_FACT_CLAIMED] = IRQ_WORK_CLAIMED,
	[LUCOS_FACT_MODULE_NAME] = offsetof(struct module, name),
};

/*
 * The module, and an entry that says it is in use by itself: neither rmmod nor rmmod -f takes away what the host has put
 * there (kernel/module/main.c, delete_module).
 */
struct lucos_module {
	struct module module;
#ifdef CONFIG_MODULE_UNLOAD
	struct module_use use;
#endif
};

/* References of a module that nobody but us uses: MODULE_REF_BASE (kernel/module/main.c) and the use by itself. */
#define LUCOS_REFERENCES 2

static const struct lucos_range *lucos_table(const struct lucos_request *request, enum lucos_table table)
{
	return &request->tables[table];
}

static int lucos_allocate(struct lucos_request *request)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 10, 0)
	void *base = execmem_alloc(EXECMEM_MODULE_TEXT, request->size);
#else
	void *base = module_alloc(request->size);
#endif

	if (!base)
		return -ENOMEM;
	memset(base, 0, request->size);
	request->base = (unsigned long)base;
	return 0;
}

static void lucos_free(unsigned long base)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 10, 0)
	execmem_free((void *)base);
#else
	module_memfree((void *)base);
#endif
}

/* The places of code and data, for lookups by address. */
static void lucos_layout(struct module *mod, const struct lucos_request *request)
{
	void *base = (void *)(unsigned long)request->base;

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	mod->mem[MOD_TEXT].base = base;
	mod->mem[MOD_TEXT].size = request->text_size;
	mod->mem[MOD_RODATA].base = base + request->text_size;
	mod->mem[MOD_RODATA].size = request->ro_size - request->text_size;
	mod->mem[MOD_DATA].base = base + request->ro_size;
	mod->mem[MOD_DATA].size = request->size - request->ro_size;
#else
	mod->core_layout.base = base;
	mod->core_layout.size = request->size;
	mod->core_layout.text_size = request->text_size;
	mod->core_layout.ro_size = request->ro_size;
	mod->core_layout.ro_after_init_size = request->ro_size;
#endif
}

/* The tables that lookups use. Sorting writes them, so the area is still writable. */
static void lucos_tables(struct module *mod, const struct lucos_request *request)
{
	const struct lucos_range *table = lucos_table(request, LUCOS_EXCEPTIONS);

	if (table->size) {
		mod->extable = (void *)(unsigned long)table->address;
		mod->num_exentries = table->size / sizeof(*mod->extable);
		sort_extable(mod->extable, mod->extable + mod->num_exentries);
	}
#ifdef CONFIG_MODULE_UNLOAD
	INIT_LIST_HEAD(&mod->source_list);
	INIT_LIST_HEAD(&mod->target_list);
#endif
#ifdef CONFIG_GENERIC_BUG
	table = lucos_table(request, LUCOS_BUGS);
	INIT_LIST_HEAD(&mod->bug_list);
	if (table->size) {
		mod->bug_table = (void *)(unsigned long)table->address;
		mod->num_bugs = table->size / sizeof(*mod->bug_table);
	}
#endif
#ifdef CONFIG_JUMP_LABEL
	table = lucos_table(request, LUCOS_JUMP_LABELS);
	if (table->size) {
		mod->jump_entries = (void *)(unsigned long)table->address;
		mod->num_jump_entries = table->size / sizeof(*mod->jump_entries);
	}
#endif
#ifdef CONFIG_KPROBES
	table = lucos_table(request, LUCOS_UNPROBED);
	if (table->size) {
		mod->kprobe_blacklist = (void *)(unsigned long)table->address;
		mod->num_kprobe_blacklist = table->size / sizeof(*mod->kprobe_blacklist);
	}
#endif
#ifdef CONFIG_UNWINDER_ORC
	table = lucos_table(request, LUCOS_ORC_IP);
	if (table->size) {
		const struct lucos_range *orc = lucos_table(request, LUCOS_ORC);

		unwind_module_init(mod, (void *)(unsigned long)table->address, table->size,
				   (void *)(unsigned long)orc->address, orc->size);
	}
#endif
#ifdef CONFIG_KALLSYMS
	mod->core_kallsyms.symtab = (void *)(unsigned long)request->symtab;
	mod->core_kallsyms.num_symtab = request->num_symtab;
	mod->core_kallsyms.strtab = (void *)(unsigned long)request->strtab;
	mod->core_kallsyms.typetab = (void *)(unsigned long)request->typetab;
	rcu_assign_pointer(mod->kallsyms, &mod->core_kallsyms);
#endif
}

static int lucos_permissions(const struct lucos_request *request)
{
	unsigned long base = request->base;
	int text = request->text_size >> PAGE_SHIFT;
	int read_only = request->ro_size >> PAGE_SHIFT;
	int err = set_memory_ro(base, read_only);

	return err ?: set_memory_x(base, text);
}

/* Dynamic debug hears of a module by itself since Linux 6.4, through the notifiers. */
static int lucos_debug_add(struct module *mod, const struct lucos_request *request)
{
#ifdef CONFIG_DYNAMIC_DEBUG_CORE
	const struct lucos_range *table = lucos_table(request, LUCOS_DYNAMIC_DEBUG);
	struct _ddebug_info info = {
		.descs = (void *)(unsigned long)table->address,
		.num_descs = table->size / sizeof(*info.descs),
	};

	if (!info.num_descs)
		return 0;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	mod->dyndbg_info = info;
#else
	return ddebug_add_module(&info, mod->name);
#endif
#endif
	return 0;
}

static void lucos_debug_remove(struct module *mod)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0)
	ddebug_remove_module(mod->name);
#endif
}

static int lucos_link(struct module *mod, const struct lucos_request *request)
{
	int err = -EEXIST;

	mutex_lock(&module_mutex);
	if (!find_module_all(mod->name, strlen(mod->name), true)) {
		mod_tree.addr_min = min_t(unsigned long, mod_tree.addr_min, request->base);
		mod_tree.addr_max = max_t(unsigned long, mod_tree.addr_max, request->base + request->size);
		list_add_rcu(&mod->list, &modules);
		mod_tree_insert(mod);
#ifdef CONFIG_GENERIC_BUG
		list_add_rcu(&mod->bug_list, &module_bug_list);
#endif
		mod->state = MODULE_STATE_COMING;
		err = 0;
	}
	mutex_unlock(&module_mutex);
	return err;
}

/* Nobody finds it any more when this returns (kernel/module/main.c, free_module). */
static void lucos_unlink(struct module *mod)
{
	mutex_lock(&module_mutex);
	mod->state = MODULE_STATE_UNFORMED;
	mutex_unlock(&module_mutex);
	lucos_debug_remove(mod);
	mutex_lock(&module_mutex);
	list_del_rcu(&mod->list);
	mod_tree_remove(mod);
#ifdef CONFIG_GENERIC_BUG
	list_del_rcu(&mod->bug_list);
#endif
	synchronize_rcu();
	mutex_unlock(&module_mutex);
}

static int lucos_register(struct lucos_request *request)
{
	struct lucos_module *own = kzalloc(sizeof(*own), GFP_KERNEL);
	struct module *mod;
	int err;

	if (!own)
		return -ENOMEM;
	mod = &own->module;
	mod->state = MODULE_STATE_UNFORMED;
	strscpy(mod->name, request->name, sizeof(mod->name));
	/* Shown as (K), also in an oops; gone with the module. The kernel's own taint could never be taken back. */
	set_bit(TAINT_LIVEPATCH, &mod->taints);
	lucos_layout(mod, request);
	lucos_tables(mod, request);
#ifdef CONFIG_MODULE_UNLOAD
	own->use.source = mod;
	own->use.target = mod;
	list_add(&own->use.source_list, &mod->source_list);
	list_add(&own->use.target_list, &mod->target_list);
	atomic_set(&mod->refcnt, LUCOS_REFERENCES);
#endif
	err = lucos_permissions(request);
	if (err)
		goto free;
	err = lucos_link(mod, request);
	if (err)
		goto free;
	err = lucos_debug_add(mod, request);
	if (err)
		goto unlink;
	/* Static keys and calls, tracepoints, probes: all that follows code as it comes and goes. */
	err = blocking_notifier_call_chain_robust(&module_notify_list, MODULE_STATE_COMING, MODULE_STATE_GOING, mod);
	err = notifier_to_errno(err);
	if (err)
		goto unlink;
	mod->state = MODULE_STATE_LIVE;
	blocking_notifier_call_chain(&module_notify_list, MODULE_STATE_LIVE, mod);
	request->module = (unsigned long)mod;
	return 0;

unlink:
	ftrace_release_mod(mod);
	lucos_unlink(mod);
free:
	kfree(own);
	return err;
}

/* The host has proved that nothing can be inside. */
static int lucos_release(struct lucos_request *request)
{
	struct module *mod = (void *)(unsigned long)request->module;

	if (mod) {
#ifdef CONFIG_MODULE_UNLOAD
		/* From here on nobody gets a reference (try_module_get). */
		if (atomic_cmpxchg(&mod->refcnt, LUCOS_REFERENCES, 0) != LUCOS_REFERENCES)
			return -EBUSY;
#endif
		mutex_lock(&module_mutex);
		mod->state = MODULE_STATE_GOING;
		mutex_unlock(&module_mutex);
		blocking_notifier_call_chain(&module_notify_list, MODULE_STATE_GOING, mod);
		ftrace_release_mod(mod);
		lucos_unlink(mod);
		kfree(container_of(mod, struct lucos_module, module));
	}
	/* Classes of locks that the new code has brought; after the grace period. */
	lockdep_free_key_range((void *)(unsigned long)request->base, request->size);
	lucos_free(request->base);
	return 0;
}

static void lucos_worker(struct work_struct *work)
{
	struct lucos_request *request = &lucos_support_request;
	int err;

	switch (request->operation) {
	case LUCOS_ALLOCATE:
		err = lucos_allocate(request);
		break;
	case LUCOS_REGISTER:
		err = lucos_register(request);
		break;
	case LUCOS_RELEASE:
		err = lucos_release(request);
		break;
	default:
		err = -EOPNOTSUPP;
	}
	request->result = err;
	/* The host reads the result only after it has seen this. */
	smp_store_release(&request->state, LUCOS_DONE);
}

/* Runs with interrupts off, on the list's processor (kernel/irq_work.c, irq_work_single). */
void lucos_support_interrupt(struct irq_work *work)
{
	WRITE_ONCE(lucos_support_request.state, LUCOS_RUNNING);
	queue_work(system_unbound_wq, &lucos_work);
}
