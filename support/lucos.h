/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What an update says about itself: which function replaces which, which datum has a new copy, and hooks.
 *
 * For kernel C that lucos-build compiles (--update FILE.c, --hooks FILE.c) or pre-links (prelink FILE.o). Each macro stands at
 * file scope and leaves one record in the section .lucos.declare, which lucos-build reads and takes out; nothing of it gets into
 * the guest. docs/hooks.md explains all of it with examples.
 *
 * Hooks are called while all other processors stand still and interrupts are off on this one, on a stack of the kernel. They may
 * use any symbol of the kernel, exported or not. They must
 *   - not sleep, schedule or wait for another processor: nobody would ever wake them (no mutex, no GFP_KERNEL, no msleep, no
 *     synchronize_rcu, no access to user memory that may fault, no smp_call_function);
 *   - not take a lock that a stopped thread may hold: use a trylock and veto, or do without (READ_ONCE is enough, nobody writes);
 *   - come to an end soon: the whole guest waits, and the runtime gives up and takes the update back after a while.
 * lucos-build refuses hooks that call, directly or through functions of the same file, what is known to sleep or wait, and names
 * those that take locks. It does not see flags such as GFP_KERNEL, nor what a function of the kernel does in turn.
 */
#ifndef LUCOS_H
#define LUCOS_H

#include <linux/ptrace.h>
#include <linux/sched.h>
#include <linux/types.h>

/* What a hook about the whole update is told. */
struct lucos_context {
	__u32 size;		/* of this structure; later versions may add members */
	__u32 undo;		/* 0: the update is applied, 1: it is taken back */
	__u32 threads;		/* threads inside the functions that are left (post, undo post: 0) */
	__u32 reserved;
	const char *name;	/* of the update */
};

/* One copy of a datum has been written; bring the other one in line. */
struct lucos_sync {
	__u32 size;		/* of this structure */
	__u32 first;		/* 1: the copy that is to be written has never been made from the other one */
	void *to;		/* the copy to be written: the new one (LUCOS_SYNC_TO_NEW) or the old one (LUCOS_SYNC_TO_OLD) */
	const void *from;	/* the other copy */
	__u64 offset;		/* which bytes of `from` were written; all of them when `first` is 1 */
	__u64 length;
};

/* A thread returns from a function that is left: it has run the old version to its end while the new one was in force already. */
struct lucos_transition {
	__u32 size;			/* of this structure */
	__u32 undo;			/* 0: it leaves the old version, 1: the new one */
	struct task_struct *task;	/* the thread; `current` is the same */
	const struct pt_regs *regs;	/* its registers at the return: ax is what the function returns, ip where it returns to */
};

/* A record. Its layout is fixed: lucos-build reads it from objects. */
#define LUCOS_DECLARATION_VERSION 1

struct lucos_declaration {
	__u32 kind;
	__u32 version;
	const char *subject;	/* name of a function or datum of the kernel */
	const char *file;	/* the file that defines it, relative to the kernel's source; may be 0 */
	union {
		const void *any;
		int (*pre)(const struct lucos_context *context);
		void (*post)(const struct lucos_context *context);
		void (*sync)(const struct lucos_sync *sync);
		void (*transition)(const struct lucos_transition *transition);
	};
} __attribute__((aligned(8)));

#define LUCOS_PASTE_(a, b) a##b
#define LUCOS_PASTE(a, b) LUCOS_PASTE_(a, b)
#define LUCOS_DECLARE(number, name, path, member, what)					\
	static const struct lucos_declaration LUCOS_PASTE(lucos_declaration_, __COUNTER__)	\
	__attribute__((used, section(".lucos.declare"), aligned(8))) = {			\
		.kind = (number),								\
		.version = LUCOS_DECLARATION_VERSION,						\
		.subject = (name),								\
		.file = (path),									\
		.member = (what),								\
	}

/*
 * LUCOS_REPLACE(old, new): the kernel's function `old` gives way to `new` of this file. `old` is a name, static or not, and needs no
 * declaration here; `new` may have the same name. Both must take and return the same types. Where several files of the kernel have
 * a function of that name, LUCOS_REPLACE_IN("mm/shmem.c", old, new) says which is meant.
 */
#define LUCOS_REPLACE(old, new) LUCOS_DECLARE(1, #old, 0, any, (const void *)(new))
#define LUCOS_REPLACE_IN(path, old, new) LUCOS_DECLARE(1, #old, path, any, (const void *)(new))

/*
 * LUCOS_DATUM(old, new): the kernel's variable `old` has a new copy, the variable `new` of this file. Old code goes on using `old` and
 * new code uses `new`; until the last old thread has left, the two are kept in line by the hooks of LUCOS_SYNC_TO_NEW(old, fn) and
 * LUCOS_SYNC_TO_OLD(old, fn), which must both be there. Every function that uses `old` has to be replaced.
 */
#define LUCOS_DATUM(old, new) LUCOS_DECLARE(2, #old, 0, any, (const void *)&(new))
#define LUCOS_DATUM_IN(path, old, new) LUCOS_DECLARE(2, #old, path, any, (const void *)&(new))

/*
 * LUCOS_SYMBOL_IN("mm/shmem.c", name): which file's function or variable the undefined symbol `name` of this file is, where several files
 * of the kernel have one. The symbol is declared here as usual (extern); static ones of the kernel can be used in this way, too.
 */
#define LUCOS_SYMBOL_IN(path, name) LUCOS_DECLARE(3, #name, path, any, 0)

/* int fn(const struct lucos_context *): before anything is written. Other than 0: the update is not applied, and the number is said. */
#define LUCOS_PRE(fn) LUCOS_DECLARE(16, "", 0, pre, fn)
/* void fn(const struct lucos_context *): the last old thread has left, the update has ended. */
#define LUCOS_POST(fn) LUCOS_DECLARE(17, "", 0, post, fn)
/* void fn(const struct lucos_sync *): makes the new copy of a datum from the old one; first of all at the switch, behind pre. */
#define LUCOS_SYNC_TO_NEW(old, fn) LUCOS_DECLARE(18, #old, 0, sync, fn)
/* void fn(const struct lucos_sync *): makes the old copy of a datum from the new one. */
#define LUCOS_SYNC_TO_OLD(old, fn) LUCOS_DECLARE(19, #old, 0, sync, fn)
/* void fn(const struct lucos_transition *): a thread returns from the old version of a replaced function. */
#define LUCOS_TRANSITION(old, fn) LUCOS_DECLARE(20, #old, 0, transition, fn)
#define LUCOS_TRANSITION_IN(path, old, fn) LUCOS_DECLARE(20, #old, path, transition, fn)
/* The same when the update is taken back: pre may forbid it, post ends it, the thread returns from the new version. */
#define LUCOS_UNDO_PRE(fn) LUCOS_DECLARE(21, "", 0, pre, fn)
#define LUCOS_UNDO_POST(fn) LUCOS_DECLARE(22, "", 0, post, fn)
#define LUCOS_UNDO_TRANSITION(old, fn) LUCOS_DECLARE(23, #old, 0, transition, fn)
#define LUCOS_UNDO_TRANSITION_IN(path, old, fn) LUCOS_DECLARE(23, #old, path, transition, fn)

#endif /* LUCOS_H */
