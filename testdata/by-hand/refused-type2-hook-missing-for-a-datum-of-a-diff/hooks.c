#include <linux/list.h>
#include <linux/mm_types.h>
#include <lucos.h>

struct mm_slot;
/* Both versions, as the two sources have them. */
struct old_scan { struct list_head mm_head; struct mm_slot *mm_slot; unsigned long address; };
struct new_scan { unsigned long rounds; struct list_head mm_head; struct mm_slot *mm_slot; unsigned long address; };

/* The elements of the list point to its head, so they follow it. */
static void move_head(struct list_head *to, const struct list_head *from)
{
	if (from->next == from) {
		INIT_LIST_HEAD(to);
		return;
	}
	*to = *from;
	to->next->prev = to;
	to->prev->next = to;
}

static void to_new(const struct lucos_sync *sync)
{
	const struct old_scan *from = sync->from;
	struct new_scan *to = sync->to;

	move_head(&to->mm_head, &from->mm_head);
	to->mm_slot = from->mm_slot;
	to->address = from->address;
}
LUCOS_SYNC_TO_NEW(khugepaged_scan, to_new);
