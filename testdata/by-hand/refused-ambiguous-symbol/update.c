#include <lucos.h>

static void new_init_once(void *object)
{
}
LUCOS_REPLACE(init_once, new_init_once);
