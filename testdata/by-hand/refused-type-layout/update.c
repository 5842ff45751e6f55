struct seq_file {
	char *buf;
	unsigned int size;
};
#define seq_file seq_file_of_the_kernel
#include <lucos.h>
#undef seq_file

static int new_version_proc_show(struct seq_file *m, void *v)
{
	return m->size;
}
LUCOS_REPLACE(version_proc_show, new_version_proc_show);
