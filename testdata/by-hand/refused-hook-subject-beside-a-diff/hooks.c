#include <lucos.h>

static void leaves(const struct lucos_transition *transition)
{
}
LUCOS_TRANSITION(cmdline_proc_show, leaves);
