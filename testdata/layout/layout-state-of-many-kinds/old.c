/* One datum with all that a transfer has to carry. */
struct list_head { struct list_head *next, *prev; };
enum mode { OFF, ON };
struct item { short id; int weight; };
struct state {
	unsigned int flags : 3;
	unsigned int mode : 2;
	int count;
	unsigned short limit;
	long long wide;
	enum mode which;
	void *owner;
	struct item items[3];
	unsigned char table[4];
	union { int raw; char text[8]; };
	struct { int x, y; } point;
	char old_name;
	int gone;
	struct list_head list;
};
struct state state = { .flags = 5, .count = -2, .list = { &state.list, &state.list } };
int *pointer = &state.count;
