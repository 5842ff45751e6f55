#include <lucos.h>

static void new_function(void)
{
}
LUCOS_REPLACE(version_proc_shaw, new_function);
