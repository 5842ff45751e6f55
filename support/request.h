/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the host asks of the support object, and what comes back.
 *
 * The host fills a request in the object's data before it places the object, and reads it while the guest runs. All fields
 * are little-endian; the host's side is runtime-hv/src/guest/support.rs.
 */
#ifndef LUCOS_REQUEST_H
#define LUCOS_REQUEST_H

#include <linux/types.h>

/* Raised with every change of struct lucos_request or of the meaning of a field. */
#define LUCOS_ABI 2

enum lucos_operation {
	LUCOS_ALLOCATE = 1,	/* size -> base: zeroed module memory, writable and not executable */
	LUCOS_REGISTER = 2,	/* everything but module -> module: the kernel knows the area as a module */
	LUCOS_RELEASE = 3,	/* base, module or 0: the kernel forgets the module, and the area is freed */
};

enum lucos_state {
	LUCOS_ASKED = 0,
	LUCOS_RUNNING = 1,
	LUCOS_DONE = 2,
};

enum lucos_table {
	LUCOS_EXCEPTIONS,	/* __ex_table */
	LUCOS_BUGS,		/* __bug_table */
	LUCOS_JUMP_LABELS,	/* __jump_table */
	LUCOS_ORC_IP,		/* .orc_unwind_ip */
	LUCOS_ORC,		/* .orc_unwind */
	LUCOS_DYNAMIC_DEBUG,	/* __dyndbg */
	LUCOS_UNPROBED,		/* _kprobe_blacklist */
	LUCOS_TABLES
};

struct lucos_range {
	u64 address;
	u64 size;		/* in bytes, 0: there is none */
};

struct lucos_request {
	u32 operation;
	u32 state;
	s64 result;		/* 0 or a negative error number, valid when the state is LUCOS_DONE */
	u64 base;
	u64 size;		/* of the area, and all other sizes: multiples of a page */
	u64 text_size;		/* the area begins with code, */
	u64 ro_size;		/* goes on with read-only data up to here, and ends with data */
	u64 module;		/* the struct module */
	struct lucos_range tables[LUCOS_TABLES];
	u64 symtab;		/* struct elf64_sym, the first one empty, values are addresses */
	u64 num_symtab;
	u64 strtab;
	u64 typetab;		/* a letter for each symbol, as in /proc/kallsyms */
	char name[56];
};

/* Places in lucos_support_abi: what the host has to know of this kernel to start the object. */
enum lucos_fact {
	LUCOS_FACT_ABI,
	LUCOS_FACT_REQUEST_SIZE,
	LUCOS_FACT_NEXT,	/* offset in struct irq_work: next on the list */
	LUCOS_FACT_FLAGS,	/* offset in struct irq_work: flags, 4 bytes */
	LUCOS_FACT_CLAIMED,	/* flags of a work that is on a list or runs */
	LUCOS_FACT_MODULE_NAME,	/* offset in struct module */
	LUCOS_FACTS
};

#endif
