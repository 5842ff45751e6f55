//! Words of C, and the kernel's own, that say how something is declared.
//!
//! Comes in: a word. Decided: whether it is a keyword, says how something is stored, or is an attribute. Goes out: yes or no. A name
//! that is missing here makes a declaration one that is not understood, which is compiled once more than needed.

use std::collections::HashSet;
use std::sync::LazyLock;

/// A set of words.
pub(super) type Words = HashSet<&'static [u8]>;

fn words(list: &'static str) -> Words {
    list.split_ascii_whitespace().map(str::as_bytes).collect()
}

/// Keywords that name nothing.
pub(super) static KEYWORDS: LazyLock<Words> = LazyLock::new(|| {
    words(
        "void char short int long float double signed unsigned _Bool struct union enum const volatile restrict static \
     extern inline register typedef sizeof return if while for switch do _Atomic __extension__ __const \
     __volatile__ __signed__ __inline __inline__ __int128",
    )
});

/// Words that say how something is stored or linked, and nothing about its type.
pub(super) static STORAGE: LazyLock<Words> =
    LazyLock::new(|| words("static extern inline register __inline __inline__ __extension__ const volatile"));

/// Attributes with parameters: as the compiler knows them, and the kernel's names for them (include/linux/compiler*.h).
pub(super) static ATTRIBUTES: LazyLock<Words> = LazyLock::new(|| {
    words(
        "__attribute__ __attribute __asm__ asm __asm __typeof__ __typeof typeof _Alignas __aligned __section __printf \
     __scanf __alloc_size __realloc_size __acquires __releases __must_hold __cond_acquires __assume_aligned \
     __compiletime_error __compiletime_warning __malloc __diagnose_as __copy __counted_by",
    )
});

/// Attributes without parameters, by the kernel's names.
pub(super) static PLAIN_ATTRIBUTES: LazyLock<Words> = LazyLock::new(|| {
    words(
        "__read_mostly __ro_after_init __percpu __rcu __iomem __user __kernel __force __init __exit __initdata \
     __initconst __meminit __meminitdata __ref __refdata __init_or_module __sched __cpuidle __weak __maybe_unused \
     __always_unused __packed __must_check __cold __hot __pure __attribute_const__ __noreturn __visible \
     __randomize_layout __no_sanitize_address ____cacheline_aligned ____cacheline_aligned_in_smp \
     __cacheline_aligned __cacheline_aligned_in_smp __deprecated __nocast __bitwise __lockfunc asmlinkage notrace \
     noinstr noinline __must_hold_nothing __no_randomize_layout __designated_init",
    )
});

/// Attributes, under their own or the kernel's names, with which a function or name is there without being referred to.
pub(super) fn is_lasting(word: &[u8]) -> bool {
    let has = |part: &[u8]| word.windows(part.len()).any(|window| window == part);
    (has(b"used") && !has(b"unused"))
        || [b"alias".as_slice(), b"constructor", b"destructor", b"ifunc", b"retain", b"__bpf_kfunc", b"symver"]
            .iter()
            .any(|part| has(part))
}

/// Whether a word declares a function inline, under the compiler's or the kernel's names.
pub(super) fn is_inline(word: &[u8]) -> bool {
    word.windows(6).any(|window| window == b"inline") && !word.windows(8).any(|window| window == b"noinline")
}
