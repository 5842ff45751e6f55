//! Locks that come into types of which instances exist.
//!
//! Comes in: types that differ. Decided: which members are or contain a lock now and did not before. Goes out: [`Warning`]s:
//! nothing has made these locks ready in the instances that exist.

use super::Warning;
use super::text::Texts;
use crate::dwarf_layout::Layouts;
use crate::layout_diff::{TypeChange, contained};
use std::collections::BTreeSet;

/// Types that are locks (include/linux/{mutex,rwsem,spinlock_types,rwlock_types,seqlock,semaphore,rtmutex,percpu-rwsem,local_lock}.h,
/// include/net/sock.h), innermost ones included.
const LOCKS: &[&str] = &[
    "arch_rwlock_t",
    "arch_spinlock_t",
    "local_lock_t",
    "raw_spinlock_t",
    "rwlock_t",
    "seqcount_t",
    "seqlock_t",
    "socket_lock_t",
    "spinlock_t",
    "struct lockref",
    "struct mutex",
    "struct percpu_rw_semaphore",
    "struct qrwlock",
    "struct qspinlock",
    "struct raw_spinlock",
    "struct rt_mutex",
    "struct rt_mutex_base",
    "struct rw_semaphore",
    "struct semaphore",
    "struct seqcount",
    "struct spinlock",
    "struct ww_mutex",
];

const NEW: &str = "instances that exist were made without it, and nothing has initialised it in them: supply a pre-hook that does \
    (--hooks FILE.c), or say in the override file why every instance is made by new code";
const RETYPED: &str = "instances that exist hold a lock of the other kind, which may be taken right now: supply hooks that convert it \
    (--hooks FILE.c), or say in the override file why every instance is made by new code";

pub(super) fn check(layouts: [&Layouts; 2], types: &[TypeChange], texts: &Texts<'_>) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for change in types.iter().filter(|change| change.consequence_of.is_empty()) {
        for member in change.members.iter().filter(|member| member.renamed_to.is_none()) {
            let Some(after) = &member.new else { continue };
            let [old, new] = layouts.map(|layouts| locks_in(layouts, &change.name, &member.name));
            if new.is_empty() || old == new {
                continue;
            }
            let what = format!("`{}` of `{}`", member.name, change.name);
            let kind = if LOCKS.contains(&after.type_text.as_str()) { "is" } else { "contains" };
            let (rule, help, message) = match &member.old {
                Some(before) if !old.is_empty() => {
                    let message = format!(
                        "{what} is a lock of another kind: `{}` before, `{}` after",
                        before.type_text, after.type_text
                    );
                    ("lock-retyped", RETYPED, message)
                }
                _ => {
                    let message = format!("{what} is new and {kind} a lock: `{}`", after.type_text);
                    ("new-lock-in-type", NEW, message)
                }
            };
            let place = member.place.as_ref().or(change.place.as_ref());
            let place = place.and_then(|place| texts.added(&place.file, &member.name));
            warnings.push(Warning {
                rule,
                subject: change.name.clone(),
                message,
                help,
                file: place.as_ref().map(|place| place.0.clone()),
                line: place.as_ref().map(|place| place.1),
                diff_line: place.and_then(|place| place.2),
            });
        }
    }
    warnings
}

/// The outermost locks that a member is or contains.
fn locks_in(layouts: &Layouts, name: &str, path: &str) -> BTreeSet<String> {
    let Some(member) = layouts.types.get(name).and_then(|layout| layout.member(path)) else { return BTreeSet::new() };
    if LOCKS.contains(&member.type_text.as_str()) {
        return BTreeSet::from([member.type_text.clone()]);
    }
    let mut inside = BTreeSet::new();
    contained(&member.embeds, layouts, &mut inside);
    inside.retain(|name| LOCKS.contains(&name.as_str()));
    inside
}
