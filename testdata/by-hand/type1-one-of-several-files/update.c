#include <linux/fs.h>
#include <lucos.h>

static void new_init_once(void *object)
{
	inode_init_once(object);
}
LUCOS_REPLACE_IN("fs/inode.c", init_once, new_init_once);
