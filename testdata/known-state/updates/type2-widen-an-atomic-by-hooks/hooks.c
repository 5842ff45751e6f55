#include <linux/atomic.h>
#include <lucos.h>

static void to_new(const struct lucos_sync *sync)
{
	atomic64_set((atomic64_t *)sync->to, atomic_read((const atomic_t *)sync->from));
}
LUCOS_SYNC_TO_NEW(ticks, to_new);

static void to_old(const struct lucos_sync *sync)
{
	atomic_set((atomic_t *)sync->to, atomic64_read((const atomic64_t *)sync->from));
}
LUCOS_SYNC_TO_OLD(ticks, to_old);
