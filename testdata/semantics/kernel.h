/* What the cases use of a kernel, each in the form that it has there: a function, an inline function or a macro. */
#define noinline __attribute__((noinline))
#define __always_inline inline __attribute__((always_inline))
#define barrier() asm volatile("" ::: "memory")

struct mutex { long owner; };
typedef struct raw_spinlock { int value; } raw_spinlock_t;
typedef struct spinlock { struct raw_spinlock rlock; } spinlock_t;
struct rw_semaphore { long count; raw_spinlock_t wait_lock; };
typedef struct refcount_struct { int refs; } refcount_t;
struct device;

void mutex_lock(struct mutex *lock);
int mutex_lock_killable(struct mutex *lock);
int mutex_trylock(struct mutex *lock);
void mutex_unlock(struct mutex *lock);
void _raw_spin_lock(raw_spinlock_t *lock);
unsigned long _raw_spin_lock_irqsave(raw_spinlock_t *lock);
void _raw_spin_unlock(raw_spinlock_t *lock);
void _raw_spin_unlock_irqrestore(raw_spinlock_t *lock, unsigned long flags);
void __rcu_read_lock(void);
void __rcu_read_unlock(void);
void synchronize_rcu(void);
struct device *get_device(struct device *dev);
void put_device(struct device *dev);
void refcount_warn_saturate(refcount_t *r);
void __stack_chk_fail(void) __attribute__((noreturn));
void panic(const char *text, ...) __attribute__((noreturn));

static __always_inline void spin_lock(spinlock_t *lock) { _raw_spin_lock(&lock->rlock); }
static __always_inline void spin_unlock(spinlock_t *lock) { _raw_spin_unlock(&lock->rlock); }
#define spin_lock_irqsave(lock, flags) do { flags = _raw_spin_lock_irqsave(&(lock)->rlock); } while (0)
static __always_inline void spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags)
{
	_raw_spin_unlock_irqrestore(&lock->rlock, flags);
}

static __always_inline void rcu_read_lock(void) { __rcu_read_lock(); }
static __always_inline void rcu_read_unlock(void) { __rcu_read_unlock(); }

extern int __preempt_count;
static __always_inline void __preempt_count_add(int value) { asm volatile("addl %1, %%gs:%0" : "+m" (__preempt_count) : "ri" (value)); }
static __always_inline void __preempt_count_sub(int value) { asm volatile("addl %1, %%gs:%0" : "+m" (__preempt_count) : "ri" (-value)); }
#define preempt_disable() do { __preempt_count_add(1); barrier(); } while (0)
#define preempt_enable() do { barrier(); __preempt_count_sub(1); } while (0)

static __always_inline unsigned long arch_local_irq_save(void)
{
	unsigned long flags;

	asm volatile("pushf; pop %0; cli" : "=rm" (flags) :: "memory");
	return flags;
}
static __always_inline void arch_local_irq_restore(unsigned long flags) { if (flags & 512) asm volatile("sti" ::: "memory"); }
#define local_irq_save(flags) do { flags = arch_local_irq_save(); } while (0)
#define local_irq_restore(flags) do { arch_local_irq_restore(flags); } while (0)

static inline void refcount_inc(refcount_t *r)
{
	int old = __sync_fetch_and_add(&r->refs, 1);

	if (old <= 0)
		refcount_warn_saturate(r);
}
static inline int refcount_dec_and_test(refcount_t *r) { return __sync_fetch_and_sub(&r->refs, 1) == 1; }

static inline struct mutex *class_mutex_constructor(struct mutex *lock) { mutex_lock(lock); return lock; }
static inline void class_mutex_destructor(struct mutex **lock) { if (*lock) mutex_unlock(*lock); }
#define guard(name) struct name *scope __attribute__((cleanup(class_##name##_destructor))) = class_##name##_constructor

/* As the kernel's WARN and BUG: an undefined instruction with an entry in a table that says which of them it is. */
#define __BUG(flags) asm volatile("1:\tud2\n.pushsection __bug_table,\"aw\"\n2:\t.long 1b - 2b\n\t.long 0\n" \
	"\t.word 0\n\t.word %c0\n.popsection" :: "i" (flags))
#define WARN_ON(condition) ({ int warn = !!(condition); if (warn) __BUG(1); warn; })
#define BUG_ON(condition) do { if (condition) { __BUG(0); __builtin_unreachable(); } } while (0)

static __always_inline int static_branch(int *key)
{
	asm goto("1:\t.byte 0x0f,0x1f,0x44,0x00,0x00\n.pushsection __jump_table,\"aw\"\n\t.balign 8\n\t.long 1b - .\n"
		 "\t.long %l[yes] - .\n\t.quad %c0 - .\n.popsection" :: "i" (key) :: yes);
	return 0;
yes:
	return 1;
}

extern struct mutex m, n;
extern spinlock_t s;
extern struct device *dev;
extern int work(int value);
