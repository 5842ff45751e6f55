// SPDX-License-Identifier: GPL-2.0
/*
 * A module whose state is known: each number that updates may touch is counted a second time, where none touches it.
 *
 * Threads on every processor go through the counted functions all the time. /proc/lucos_state lets them come to rest outside of
 * these functions, prints everything, and lets them go on; so what is printed together belongs together.
 */
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/percpu.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>

#define WORKERS 16
#define ENTRIES 8
#define NODES 5
/* Things at a time: sometimes fewer, sometimes more, so that slabs come and go. */
#define FEW 100
#define MANY 600
/* Bytes from one thing to the next in a slab; a thing itself is smaller. */
#define ROOM 64
/* How often a worker rests: each so-many-th round. */
#define REST 50

struct entry {
	int count;
	int inverse;
};

struct node {
	struct list_head list;
	int number;
};

/* All are of one slab cache. Behind `state` and behind the end there is room. */
struct thing {
	struct list_head list;
	unsigned long number;
	int state;
	unsigned long inverse;
};

/* What updates touch. */
static DEFINE_SPINLOCK(lock);
static int total;
/* One more than is used: whoever goes through the table has the address of its end, and that is to be its own. */
static struct entry table[ENTRIES + 1];
static LIST_HEAD(ring);
static struct node nodes[NODES];
static atomic_t ticks = ATOMIC_INIT(0);
static DEFINE_PER_CPU(int, seen);
static int begun, finished;
static int naps;
static int limit = 3;
module_param(limit, int, 0600);
static unsigned long gate;
static struct kmem_cache *thing_cache;
static LIST_HEAD(things);

/* What no update touches. */
struct tally {
	long rounds;
	long rests;
} ____cacheline_aligned;
static struct tally tallies[WORKERS];
static long tally_naps, tally_passes;
static long tally_made, tally_ended, tally_bad;
static DEFINE_SPINLOCK(thing_lock);
static int step = 1;
static struct task_struct *workers[WORKERS], *napper;
static int worker_count;
static bool hold;
static atomic_t resting = ATOMIC_INIT(0);
static DECLARE_WAIT_QUEUE_HEAD(wait);
static DEFINE_MUTEX(readers);

/* Each of these is short, and all processors are in them thousands of times a second. */

static noinline void count_total(void)
{
	spin_lock(&lock);
	total++;
	spin_unlock(&lock);
}

static noinline void count_table(int number)
{
	struct entry *entry = &table[number % ENTRIES];

	spin_lock(&lock);
	entry->count++;
	entry->inverse = ~entry->count;
	spin_unlock(&lock);
}

static noinline void turn_ring(void)
{
	spin_lock(&lock);
	list_rotate_left(&ring);
	spin_unlock(&lock);
}

static noinline void count_ticks(void)
{
	int by = READ_ONCE(step);

	if (by > 0)
		atomic_add(by, &ticks);
}

static noinline void count_seen(void)
{
	this_cpu_inc(seen);
}

static noinline void begin_thing(struct thing *thing, unsigned long number)
{
	thing->number = number;
	thing->inverse = ~number;
}

static noinline void complete_thing(struct thing *thing)
{
	WRITE_ONCE(thing->state, 1);
}

/* What is wrong with a thing, in two halves. */
static noinline long is_begun_badly(struct thing *thing)
{
	return thing->inverse != ~thing->number;
}

static noinline long is_completed_badly(struct thing *thing)
{
	return READ_ONCE(thing->state) != 1;
}

/* A thing begins with nothing in it that anybody knows, also where nothing is. */
static noinline struct thing *make_thing(unsigned long number)
{
	void *room = kmem_cache_alloc(thing_cache, GFP_KERNEL);

	if (!room)
		return NULL;
	memset(room, 0x5a, ROOM);
	begin_thing(room, number);
	complete_thing(room);
	return room;
}

/* One is made, and one or two that are there longest go. */
static noinline void change_things(void)
{
	struct thing *gone[2] = { NULL, NULL };
	struct thing *thing;
	long bad = 0;
	int i;

	thing = make_thing(tally_made);
	if (!thing)
		return;
	spin_lock(&thing_lock);
	list_add_tail(&thing->list, &things);
	tally_made++;
	for (i = 0; i < 2 && tally_made - tally_ended > (tally_made / 2048 % 2 ? MANY : FEW); i++) {
		gone[i] = list_first_entry(&things, struct thing, list);
		list_del(&gone[i]->list);
		tally_ended++;
	}
	spin_unlock(&thing_lock);
	for (i = 0; i < 2; i++) {
		if (gone[i]) {
			bad += is_begun_badly(gone[i]) + is_completed_badly(gone[i]);
			kmem_cache_free(thing_cache, gone[i]);
		}
	}
	spin_lock(&thing_lock);
	tally_bad += bad;
	spin_unlock(&thing_lock);
}

/* A thread sleeps in the middle of this one. */
static noinline void rest(void)
{
	spin_lock(&lock);
	begun++;
	spin_unlock(&lock);
	usleep_range(2000, 4000);
	spin_lock(&lock);
	finished++;
	spin_unlock(&lock);
}

/* Only one at a time may pass, but the second way out leaves the gate shut. */
static noinline int pass(int way)
{
	tally_passes++;
	while (test_and_set_bit(0, &gate))
		schedule_timeout_uninterruptible(1);
	if (way == 2) {
		msleep(6000);
		return -EIO;
	}
	clear_bit(0, &gate);
	return 0;
}

static void come_to_rest(void)
{
	if (!READ_ONCE(hold))
		return;
	atomic_inc(&resting);
	wake_up_all(&wait);
	wait_event(wait, !READ_ONCE(hold));
	atomic_dec(&resting);
	wake_up_all(&wait);
}

static int work(void *data)
{
	long index = (long)data;
	long round = 0;

	while (!kthread_should_stop()) {
		count_total();
		count_table(round);
		turn_ring();
		count_ticks();
		count_seen();
		change_things();
		tallies[index].rounds++;
		if (++round % REST == 0) {
			rest();
			tallies[index].rests++;
		}
		come_to_rest();
		cond_resched();
	}
	return 0;
}

/* This thread never leaves the function that counts. */
static int nap(void *data)
{
	tally_naps = 0;
	while (!kthread_should_stop()) {
		naps++;
		tally_naps++;
		msleep_interruptible(10);
		come_to_rest();
	}
	return 0;
}

static noinline void show_total(struct seq_file *m)
{
	seq_printf(m, "total %ld\n", (long)total);
}

static noinline void show_table(struct seq_file *m)
{
	long sum = 0, torn = 0;
	int i;

	for (i = 0; i < ENTRIES; i++) {
		sum += table[i].count;
		torn += table[i].inverse != ~table[i].count && table[i].count;
	}
	seq_printf(m, "table %ld\ntorn %ld\n", sum, torn);
}

static noinline void show_ring(struct seq_file *m)
{
	long count = 0, broken = 0;
	struct node *node;

	list_for_each_entry(node, &ring, list) {
		broken += node->list.next->prev != &node->list || node->number < 0 || node->number >= NODES;
		if (++count > 2 * NODES)
			break;
	}
	seq_printf(m, "ring %ld\nbroken %ld\n", count, broken);
}

static noinline void show_ticks(struct seq_file *m)
{
	seq_printf(m, "ticks %ld\n", (long)atomic_read(&ticks));
}

static noinline void show_seen(struct seq_file *m)
{
	long sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += per_cpu(seen, cpu);
	seq_printf(m, "seen %ld\n", sum);
}

static noinline void show_rests(struct seq_file *m)
{
	seq_printf(m, "begun %ld\nfinished %ld\n", (long)begun, (long)finished);
}

static noinline void show_naps(struct seq_file *m)
{
	seq_printf(m, "naps %ld\n", (long)naps);
}

static noinline void show_limit(struct seq_file *m)
{
	seq_printf(m, "limit %ld\n", (long)limit);
}

static noinline void show_things(struct seq_file *m)
{
	struct thing *thing;
	long count = 0, bad = 0;

	spin_lock(&thing_lock);
	list_for_each_entry(thing, &things, list) {
		count++;
		bad += is_begun_badly(thing) + is_completed_badly(thing);
	}
	seq_printf(m, "things %ld\nkept %ld\nbad %ld\n", count, tally_made - tally_ended, tally_bad + bad);
	spin_unlock(&thing_lock);
}

static int show(struct seq_file *m, void *v)
{
	long rounds = 0, rests = 0;
	int i;

	mutex_lock(&readers);
	WRITE_ONCE(hold, true);
	wait_event(wait, atomic_read(&resting) == worker_count + 1);
	for (i = 0; i < WORKERS; i++) {
		rounds += tallies[i].rounds;
		rests += tallies[i].rests;
	}
	seq_printf(m, "rounds %ld\nrests %ld\ntally_naps %ld\n", rounds, rests, tally_naps);
	show_total(m);
	show_table(m);
	show_ring(m);
	show_ticks(m);
	show_seen(m);
	show_rests(m);
	show_naps(m);
	show_limit(m);
	show_things(m);
	WRITE_ONCE(hold, false);
	wake_up_all(&wait);
	wait_event(wait, !atomic_read(&resting));
	mutex_unlock(&readers);
	return 0;
}

static int state_open(struct inode *inode, struct file *file)
{
	return single_open(file, show, NULL);
}

/* A digit: by which way to pass. */
static ssize_t state_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char way;
	int ret;

	if (!size || get_user(way, text))
		return -EFAULT;
	ret = pass(way - '0');
	return ret ?: (ssize_t)size;
}

static const struct proc_ops state_ops = {
	.proc_open = state_open,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
	.proc_write = state_write,
};

static void stop(void)
{
	struct thing *thing, *next;
	int i;

	remove_proc_entry("lucos_state", NULL);
	for (i = 0; i < worker_count; i++)
		kthread_stop(workers[i]);
	if (napper)
		kthread_stop(napper);
	list_for_each_entry_safe(thing, next, &things, list)
		kmem_cache_free(thing_cache, thing);
	kmem_cache_destroy(thing_cache);
}

static int __init state_init(void)
{
	unsigned int cpu;
	int i;

	for (i = 0; i < NODES; i++) {
		nodes[i].number = i;
		list_add_tail(&nodes[i].list, &ring);
	}
	/* With a part that users may copy it is merged with no other cache. */
	thing_cache = kmem_cache_create_usercopy("lucos_things", sizeof(struct thing), 0, SLAB_HWCACHE_ALIGN,
						 offsetof(struct thing, number), sizeof(unsigned long), NULL);
	if (!thing_cache)
		return -ENOMEM;
	if (!proc_create("lucos_state", 0600, NULL, &state_ops)) {
		kmem_cache_destroy(thing_cache);
		return -ENOMEM;
	}
	for_each_online_cpu(cpu) {
		struct task_struct *task;

		if (worker_count == WORKERS)
			break;
		task = kthread_create(work, (void *)(long)worker_count, "state/%u", cpu);
		if (IS_ERR(task)) {
			stop();
			return PTR_ERR(task);
		}
		kthread_bind(task, cpu);
		workers[worker_count++] = task;
	}
	napper = kthread_create(nap, NULL, "state/nap");
	if (IS_ERR(napper)) {
		napper = NULL;
		stop();
		return -ENOMEM;
	}
	for (i = 0; i < worker_count; i++)
		wake_up_process(workers[i]);
	wake_up_process(napper);
	return 0;
}

static void __exit state_exit(void)
{
	stop();
}

module_init(state_init);
module_exit(state_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("State that can be checked while functions and data change");
