#include <linux/seq_file.h>
#include <lucos.h>
#include "internal.h"

extern void init_once(void *object);
LUCOS_SYMBOL_IN("fs/proc/inode.c", init_once);

static int new_version_proc_show(struct seq_file *m, void *v)
{
	struct proc_inode inode;

	init_once(&inode);
	return inode.vfs_inode.i_nlink;
}
LUCOS_REPLACE(version_proc_show, new_version_proc_show);
