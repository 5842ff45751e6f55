#include <lucos.h>

int version_proc_show(void)
{
	return 0;
}
