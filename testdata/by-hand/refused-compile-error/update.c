#include <lucos.h>

static void pre(void)
{
}
LUCOS_PRE(pre);
