// SPDX-License-Identifier: GPL-2.0
/*
 * Writes of every shape to one datum: to its inside, across its edges and across the end of a page, by its own address and by the
 * direct map's, from threads, from an interrupt, and from all processors at the same moment. The same is done to a twin that no
 * update touches.
 *
 * Written to /proc/lucos_writes: 1 lets a thread on each processor enter the function that uses the datum, and wait inside; 2 lets
 * them write; 3 lets them leave. What is read from it compares the datum with its twin, by the code of that moment.
 */
#include <linux/delay.h>
#include <linux/hrtimer.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <asm/fpu/api.h>

#define WORKERS 16
#define SIZE 128
/* The datum lies across the end of a page: so much of it before. */
#define BEFORE 64
#define ROOM 192
#define TOGETHER 400

struct datum {
	u8 bytes[SIZE];
};

/* In this order, without a gap: who writes across an edge of the datum writes to a neighbour. */
#define IN_ORDER __attribute__((no_reorder))
static u8 lower[PAGE_SIZE - BEFORE] IN_ORDER __aligned(PAGE_SIZE) = { 1 };
static struct datum datum IN_ORDER = { .bytes = { 1 } };
static u8 upper[ROOM] IN_ORDER = { 1 };

static u8 twin_page[2 * PAGE_SIZE] __aligned(PAGE_SIZE);
#define TWIN (twin_page + PAGE_SIZE - BEFORE)

/* Where bytes are counted by several at once: a number of all, one byte of each worker, one of the interrupt. */
#define SHARED 8
#define OWN 16
#define INTERRUPTS 40

static struct task_struct *workers[WORKERS];
static int worker_count;
static int stage;
static atomic_t waiting = ATOMIC_INIT(0), counted = ATOMIC_INIT(0), turn = ATOMIC_INIT(0), done = ATOMIC_INIT(0);
static DECLARE_WAIT_QUEUE_HEAD(wait);
static struct hrtimer timer;
static long interrupts;
static long writes, wrong_shared, wrong_own, wrong_before, wrong_after;
/* Shapes that were wrong, a bit each. */
static unsigned long wrong_shapes;
static u8 pattern[256];

enum shape {
	BYTE, WORD, LONG, QUAD, ADD, LOCK_ADD, LOCK_OR, EXCHANGE, COMPARE_EXCHANGE, COMPARE_EXCHANGE_16, LOCK_BIT_SET, BIT_SET_BY_OFFSET,
	NOT_CACHED, EXTENDED_FLOAT, VECTOR_16, VECTOR_16_NOT_CACHED, VECTOR_32, VECTOR_64, STORE_BYTES, STORE_5_BYTES, STORE_QUADS,
	MOVE_BYTES, MOVE_WORDS, MOVE_QUADS, MOVE_BACKWARDS, SHAPES
};

static const u8 sizes[SHAPES] = {
	1, 2, 4, 8, 8, 4, 1, 8, 8, 16, 8, 8,
	8, 10, 16, 16, 32, 64, 64, 5, 64,
	64, 32, 64, 64
};

static const char *const names[SHAPES] = {
	"byte", "word", "long", "quad", "add", "lock-add", "lock-or", "xchg", "cmpxchg", "cmpxchg16b", "lock-bts", "bts-by-offset",
	"movnti", "fstpt", "movups", "movntdq", "vmovups-32", "vmovups-64", "rep-stosb", "rep-stosb-5", "rep-stosq",
	"rep-movsb", "rep-movsw", "rep-movsq", "rep-movsb-backwards"
};

static bool can_do(int shape, unsigned long at)
{
	switch (shape) {
	case COMPARE_EXCHANGE_16:
	case VECTOR_16_NOT_CACHED:
		return at % 16 == 0;
	case VECTOR_32:
		return boot_cpu_has(X86_FEATURE_AVX);
	case VECTOR_64:
		return boot_cpu_has(X86_FEATURE_AVX512F);
	/* A lock across cache lines is an error of its own on some processors. */
	case LOCK_ADD:
	case EXCHANGE:
	case COMPARE_EXCHANGE:
	case LOCK_BIT_SET:
		return at % 64 + sizes[shape] <= 64;
	default:
		return true;
	}
}

static void rep(int shape, u8 *to, const u8 *from, u64 value)
{
	unsigned long count = sizes[shape];

	switch (shape) {
	case STORE_BYTES:
	case STORE_5_BYTES:
		asm volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(value) : "memory");
		break;
	case STORE_QUADS:
		count /= 8;
		asm volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(value) : "memory");
		break;
	case MOVE_BYTES:
		asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) :: "memory");
		break;
	case MOVE_WORDS:
		count /= 2;
		asm volatile("rep movsw" : "+D"(to), "+S"(from), "+c"(count) :: "memory");
		break;
	case MOVE_QUADS:
		count /= 8;
		asm volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(count) :: "memory");
		break;
	default:
		to += count - 1;
		from += count - 1;
		asm volatile("std; rep movsb; cld" : "+D"(to), "+S"(from), "+c"(count) :: "memory");
	}
}

static void vector(int shape, u8 *to, const u8 *from)
{
	kernel_fpu_begin();
	switch (shape) {
	case EXTENDED_FLOAT:
		asm volatile("fldt %1; fstpt %0" : "=m"(*(u8 (*)[10])to) : "m"(*(const u8 (*)[10])from));
		break;
	case VECTOR_16:
		asm volatile("movups %1, %%xmm0; movups %%xmm0, %0" : "=m"(*(u8 (*)[16])to) : "m"(*(const u8 (*)[16])from));
		break;
	case VECTOR_16_NOT_CACHED:
		asm volatile("movups %1, %%xmm0; movntdq %%xmm0, %0" : "=m"(*(u8 (*)[16])to) : "m"(*(const u8 (*)[16])from));
		break;
	case VECTOR_32:
		asm volatile("vmovups %1, %%ymm0; vmovups %%ymm0, %0" : "=m"(*(u8 (*)[32])to) : "m"(*(const u8 (*)[32])from));
		break;
	default:
		asm volatile("vmovups %1, %%zmm0; vmovups %%zmm0, %0" : "=m"(*(u8 (*)[64])to) : "m"(*(const u8 (*)[64])from));
	}
	kernel_fpu_end();
}

/* One write. The datum and its twin hold the same before, and so they do afterwards. */
static noinline void write_once(int shape, u8 *to, u64 value)
{
	const u8 *from = pattern + value % 64;
	u64 old;

	switch (shape) {
	case BYTE:
		asm volatile("movb %b1, %0" : "=m"(*to) : "q"(value));
		break;
	case WORD:
		asm volatile("movw %w1, %0" : "=m"(*(u16 *)to) : "r"(value));
		break;
	case LONG:
		asm volatile("movl %k1, %0" : "=m"(*(u32 *)to) : "r"(value));
		break;
	case QUAD:
		asm volatile("movq %1, %0" : "=m"(*(u64 *)to) : "r"(value));
		break;
	case ADD:
		asm volatile("addq %1, %0" : "+m"(*(u64 *)to) : "r"(value));
		break;
	case LOCK_ADD:
		asm volatile("lock addl %k1, %0" : "+m"(*(u32 *)to) : "r"(value));
		break;
	case LOCK_OR:
		asm volatile("lock orb %b1, %0" : "+m"(*to) : "q"(value));
		break;
	case EXCHANGE:
		asm volatile("xchgq %1, %0" : "+m"(*(u64 *)to), "+r"(value));
		break;
	case COMPARE_EXCHANGE:
		old = *(u64 *)to;
		asm volatile("lock cmpxchgq %2, %0" : "+m"(*(u64 *)to), "+a"(old) : "r"(value) : "memory");
		break;
	case COMPARE_EXCHANGE_16: {
		u64 low = ((u64 *)to)[0], high = ((u64 *)to)[1];

		asm volatile("lock cmpxchg16b %0" : "+m"(*(u8 (*)[16])to), "+a"(low), "+d"(high) : "b"(value), "c"(~value) : "memory");
		break;
	}
	case LOCK_BIT_SET:
		asm volatile("lock btsq %1, %0" : "+m"(*(u64 *)to) : "Ji"(37));
		break;
	case BIT_SET_BY_OFFSET:
		/* The word that is written lies beside the address of the operand. */
		asm volatile("btsq %1, %0" : "+m"(*(u64 *)(to - 64)) : "r"(512 + value % 64) : "memory");
		break;
	case NOT_CACHED:
		asm volatile("movnti %1, %0" : "=m"(*(u64 *)to) : "r"(value));
		break;
	case EXTENDED_FLOAT ... VECTOR_64:
		vector(shape, to, from);
		break;
	default:
		rep(shape, to, from, value);
	}
}

/* A compiler knows that an address of one datum is none of another. */
static u8 *hidden(u8 *at)
{
	OPTIMIZER_HIDE_VAR(at);
	return at;
}

static u8 *direct(u8 *at)
{
	return (u8 *)page_address(vmalloc_to_page(at)) + offset_in_page(at);
}

static bool is_same(const u8 *at)
{
	return !memcmp(at - 128, TWIN - 128, 128 + SIZE + 128);
}

/* Every shape at every kind of place. */
static noinline void write_all(u8 *at)
{
	u64 value = 0x0123456789abcdefull;
	int shape, place, alias;

	for (shape = 0; shape < SHAPES; shape++) {
		int size = sizes[shape];
		const int places[] = {
			0, 1, 3, 8, 16, SIZE - size, -size / 2, 1 - size, BEFORE - size / 2, BEFORE - 1, BEFORE, SIZE - size / 2,
			SIZE - 1, -size, SIZE, 32,
		};

		for (place = 0; place < ARRAY_SIZE(places); place++) {
			u8 *to = at + places[place];

			for (alias = 0; alias < 2; alias++) {
				bool crosses = offset_in_page(to) + size > PAGE_SIZE;

				if (!can_do(shape, (unsigned long)to) || (alias && crosses))
					continue;
				value = value * 6364136223846793005ull + 1442695040888963407ull;
				write_once(shape, alias ? direct(to) : to, value);
				write_once(shape, TWIN + places[place], value);
				writes++;
				if (!is_same(at))
					wrong_shapes |= 1ul << shape;
			}
		}
		cond_resched();
	}
}

static noinline void count_in_interrupt(void)
{
	asm volatile("lock incl %0" : "+m"(*(u32 *)&datum.bytes[SHARED]));
	asm volatile("incb %0" : "+m"(datum.bytes[INTERRUPTS]));
}

static enum hrtimer_restart tick(struct hrtimer *timer)
{
	count_in_interrupt();
	interrupts++;
	hrtimer_forward_now(timer, ns_to_ktime(3 * NSEC_PER_MSEC));
	return HRTIMER_RESTART;
}

static void wait_for(int wanted)
{
	wait_event(wait, READ_ONCE(stage) >= wanted);
}

/* Threads are inside of this one as long as the test likes. */
static noinline void inside(long index)
{
	u8 *at = hidden(datum.bytes);
	int i;

	atomic_inc(&waiting);
	wait_for(2);
	/* All at once. */
	for (i = 0; i < TOGETHER; i++) {
		asm volatile("lock incl %0" : "+m"(*(u32 *)(at + SHARED)));
		asm volatile("incb %0" : "+m"(at[OWN + index]));
		if (i % 20 == 0)
			cond_resched();
	}
	atomic_inc(&counted);
	if (index == 0) {
		while (atomic_read(&counted) != worker_count)
			msleep(1);
		hrtimer_cancel(&timer);
		wrong_shared = *(u32 *)(at + SHARED) - (worker_count * (long)TOGETHER + interrupts);
		for (i = 0; i < worker_count; i++)
			wrong_own += at[OWN + i] != (u8)TOGETHER;
		wrong_own += at[INTERRUPTS] != (u8)interrupts;
		memcpy(TWIN - 128, at - 128, 128 + SIZE + 128);
	}
	/* And one after the other. */
	while (atomic_read(&turn) != index)
		msleep(1);
	wrong_before += !is_same(at);
	write_all(at);
	wrong_after += !is_same(at);
	atomic_inc(&turn);
	atomic_inc(&done);
	wait_for(3);
	wrong_after += !is_same(at);
	atomic_dec(&waiting);
}

static int work(void *data)
{
	wait_for(1);
	inside((long)data);
	while (!kthread_should_stop())
		msleep_interruptible(10);
	return 0;
}

/* By the code of this moment, which may have another datum. */
static noinline void show_datum(struct seq_file *m)
{
	long count = 0;
	int i;

	seq_puts(m, "differing ");
	for (i = 0; i < SIZE; i++)
		count += datum.bytes[i] != TWIN[i];
	seq_printf(m, "%ld\n", count);
}

static int show(struct seq_file *m, void *v)
{
	int i;

	seq_printf(m, "waiting %d\ndone %d\nwrites %ld\ninterrupts %ld\n", atomic_read(&waiting), atomic_read(&done), writes, interrupts);
	seq_printf(m, "wrong_shared %ld\nwrong_own %ld\nwrong_before %ld\n", wrong_shared, wrong_own, wrong_before);
	seq_printf(m, "wrong_after %ld\n", wrong_after);
	show_datum(m);
	for (i = 0; i < SHAPES; i++)
		if (wrong_shapes & 1ul << i)
			seq_printf(m, "wrong-%s 1\n", names[i]);
	return 0;
}

static int writes_open(struct inode *inode, struct file *file)
{
	return single_open(file, show, NULL);
}

static ssize_t writes_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char digit;

	if (!size || get_user(digit, text))
		return -EFAULT;
	if (digit == '2')
		hrtimer_start(&timer, ns_to_ktime(NSEC_PER_MSEC), HRTIMER_MODE_REL_HARD);
	WRITE_ONCE(stage, digit - '0');
	wake_up_all(&wait);
	return size;
}

static const struct proc_ops writes_ops = {
	.proc_open = writes_open,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
	.proc_write = writes_write,
};

static void stop(void)
{
	int i;

	remove_proc_entry("lucos_writes", NULL);
	WRITE_ONCE(stage, 3);
	wake_up_all(&wait);
	for (i = 0; i < worker_count; i++)
		kthread_stop(workers[i]);
	hrtimer_cancel(&timer);
}

static int __init writes_init(void)
{
	unsigned int cpu;
	int i;

	if (hidden(lower) + sizeof(lower) != hidden(datum.bytes) || hidden(datum.bytes) + SIZE != hidden(upper))
		return -EINVAL;
	for (i = 0; i < sizeof(pattern); i++)
		pattern[i] = i * 37 + 11;
	hrtimer_init(&timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_HARD);
	timer.function = tick;
	if (!proc_create("lucos_writes", 0600, NULL, &writes_ops))
		return -ENOMEM;
	for_each_online_cpu(cpu) {
		struct task_struct *task;

		if (worker_count == WORKERS)
			break;
		task = kthread_create(work, (void *)(long)worker_count, "writes/%u", cpu);
		if (IS_ERR(task)) {
			stop();
			return PTR_ERR(task);
		}
		kthread_bind(task, cpu);
		workers[worker_count++] = task;
		wake_up_process(task);
	}
	return 0;
}

static void __exit writes_exit(void)
{
	stop();
}

module_init(writes_init);
module_exit(writes_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Writes of every shape to a datum that moves");
