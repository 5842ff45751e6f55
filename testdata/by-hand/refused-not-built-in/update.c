#include <lucos.h>
