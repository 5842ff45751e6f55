//! The author's hooks.
//!
//! Comes in: declared hooks, when all code has its place. Decided: that each is about something that the bundle changes, that data with
//! a new copy can be kept in line both ways, and that no hook calls what sleeps or waits for another processor, as far as its own
//! code tells. Goes out: the hooks of the payload; warnings about locks.

use super::{Key, Linker};
use crate::by_hand::{DeclaredHook, MovedDatum};
use crate::refusal::Refusal;
use diff_analyzer::pieces::{PieceIndex, PieceKind, Target};
use lpk_format::{DataChange, DataPatch, Hook, HookKind, HookSubject};
use std::collections::BTreeSet;

/// Functions that sleep, or wait for another processor, by the beginning of their names: `include/linux/{mutex,rwsem,semaphore,wait,
/// completion,delay,rcupdate,workqueue,uaccess,smp,stop_machine,vmalloc,kthread}.h`, `kernel/sched/core.c`.
const WAITS: &[&str] = &[
    "__cond_resched",
    "__might_fault",
    "__might_resched",
    "__might_sleep",
    "__mutex_lock",
    "__SCT__cond_resched",
    "__SCT__might_resched",
    "__vmalloc",
    "__wait_on_bit",
    "__wait_rcu_gp",
    "_copy_from_user",
    "_copy_to_user",
    "cancel_delayed_work_sync",
    "cancel_work_sync",
    "console_lock",
    "copy_from_user",
    "copy_to_user",
    "del_timer_sync",
    "down_",
    "drain_workqueue",
    "flush_delayed_work",
    "flush_work",
    "free_irq",
    "io_schedule",
    "kernel_read",
    "kernel_write",
    "kthread_stop",
    "lock_sock_nested",
    "module_alloc",
    "msleep",
    "mutex_lock",
    "on_each_cpu",
    "prepare_to_wait",
    "rcu_barrier",
    "schedule",
    "smp_call_function",
    "ssleep",
    "stop_machine",
    "strncpy_from_user",
    "synchronize_",
    "text_poke_bp",
    "timer_delete_sync",
    "usleep_range",
    "vfree",
    "vmalloc",
    "vzalloc",
    "wait_for_completion",
    "wait_for_random_bytes",
    "wait_on_page_bit",
    "wait_rcu_exp_gp",
    "wait_woken",
    "ww_mutex_lock",
];
/// Names that begin like one of [`WAITS`] and do not wait.
const FREE: &[&str] = &[
    "schedule_work",
    "schedule_delayed_work",
    "scheduler_",
    "down_trylock",
    "down_read_trylock",
    "down_write_trylock",
];
/// Functions that spin for a lock (`kernel/locking/{spinlock,qspinlock,qrwlock}.c`, `kernel/rcu`).
const LOCKS: &[&str] = &[
    "_raw_spin_lock",
    "_raw_read_lock",
    "_raw_write_lock",
    "queued_spin_lock_slowpath",
    "native_queued_spin_lock_slowpath",
    "queued_read_lock_slowpath",
    "queued_write_lock_slowpath",
    "raw_spin_rq_lock_nested",
    "task_rq_lock",
];

/// What is known of a called function.
enum Known {
    Waits,
    Locks,
    Nothing,
}

fn known(name: &str) -> Known {
    let begins = |list: &[&str]| list.iter().any(|start| name.starts_with(start));
    if name == "down" || (begins(WAITS) && !begins(FREE)) {
        Known::Waits
    } else if begins(LOCKS) {
        Known::Locks
    } else {
        Known::Nothing
    }
}

impl Linker<'_, '_> {
    pub(super) fn place_hooks(&mut self) {
        let mut hooks = Vec::new();
        if let Some(declared) = self.declared {
            for hook in &declared.hooks {
                let key = (declared.unit, hook.piece);
                self.look_into(key, hook.kind);
                let Some(&(_, offset)) = self.placed.get(&key) else { continue };
                if let Some(subject) = self.hook_subject(key, hook) {
                    hooks.push(Hook { kind: hook.kind, subject, offset });
                }
            }
            hooks.sort();
            self.refuse_pairs(declared.unit, &hooks);
            // Data of a diff are carried over by the runtime where there is no hook, unless the author says otherwise.
            let data = declared.data.iter();
            let data =
                data.map(|datum| ((declared.unit, datum.piece), datum.symbol.name.clone(), datum.symbol.address));
            self.by_hooks.extend(data);
        }
        self.refuse_missing(&hooks);
        self.linked.payload.hooks = hooks;
        self.move_data();
    }

    /// Two hooks for the same.
    fn refuse_pairs(&mut self, unit: usize, hooks: &[Hook]) {
        for pair in hooks.windows(2) {
            if pair[0].kind == pair[1].kind && pair[0].subject == pair[1].subject {
                let about = pair[0].subject.name();
                let about = if about.is_empty() { "the update".to_owned() } else { format!("`{about}`") };
                let message = format!("two {} hooks about {about}", pair[0].kind.name());
                self.refuse_unit(unit, "declaration", message, "have one call both");
            }
        }
    }

    /// Data whose contents nobody would carry.
    fn refuse_missing(&mut self, hooks: &[Hook]) {
        for (key, name, address) in std::mem::take(&mut self.by_hooks) {
            for kind in [HookKind::SyncToNew, HookKind::SyncToOld] {
                if !hooks.iter().any(|hook| hook.kind == kind && hook.subject.old_address() == address) {
                    let message = format!("`{name}` has a new copy and no {} hook", kind.name());
                    let help = "old and new code run side by side: give both LUCOS_SYNC_TO_NEW and LUCOS_SYNC_TO_OLD";
                    self.refuse("hook-missing", key, message, help);
                }
            }
        }
    }

    /// Data with a new copy move, as those of a diff do; the hooks carry their contents.
    fn move_data(&mut self) {
        let Some(declared) = self.declared else { return };
        for datum in &declared.data {
            let key = (datum.unit, datum.piece);
            let (old_address, old_size) = (datum.symbol.address, datum.symbol.size);
            self.refuse_remaining_users(key, old_address..old_address + old_size);
            let Some((section, new_offset)) = self.place_datum(key, key) else { continue };
            let (name, unit) = (datum.symbol.name.clone(), datum.file.clone());
            let (old_size, new_size) = (old_size as u32, self.piece(key).1.size() as u32);
            let change = DataChange::Moved { to_new: Vec::new(), to_old: Vec::new() };
            let patch = DataPatch { name, unit, old_address, old_size, section, new_offset, new_size, change };
            self.linked.payload.changed.push(patch);
        }
    }

    fn hook_subject(&mut self, key: Key, hook: &DeclaredHook) -> Option<HookSubject> {
        if hook.kind.is_of_datum() {
            return self.datum_of_hook(key, hook);
        }
        if !hook.kind.is_of_function() {
            return Some(HookSubject::Update);
        }
        let file = hook.file.as_deref();
        let replaced =
            || self.linked.functions.iter().map(|function| (&function.name, &function.unit, function.old_address));
        let named: Vec<_> = replaced()
            .filter(|(name, unit, _)| **name == hook.subject && file.is_none_or(|file| file == *unit))
            .collect();
        let list = |functions: &[(&String, &String, u64)]| {
            let one = |(name, unit, address): &(&String, &String, u64)| format!("`{name}` ({unit}, {address:#x})");
            functions.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        let (rule, message) = match named.as_slice() {
            [(name, _, address)] => {
                return Some(HookSubject::Function { name: (*name).clone(), old_address: *address });
            }
            [] => {
                let all = list(&replaced().collect::<Vec<_>>());
                let all = if all.is_empty() { "nothing".to_owned() } else { all };
                let what = file.map_or_else(|| hook.subject.clone(), |file| format!("{file}:{}", hook.subject));
                (
                    "hook-subject",
                    format!("{} hook: the update does not replace `{what}`; it replaces {all}", hook.kind.name()),
                )
            }
            several => {
                ("ambiguous-symbol", format!("{} hook: `{}` is {}", hook.kind.name(), hook.subject, list(several)))
            }
        };
        self.refuse(
            rule,
            key,
            message,
            "name a function that the update replaces, with its file (…_IN) where two have the name",
        );
        None
    }

    fn datum_of_hook(&mut self, key: Key, hook: &DeclaredHook) -> Option<HookSubject> {
        let data: &[MovedDatum] = self.declared.map_or(&[], |declared| &declared.data);
        // Of a diff beside which the hooks are.
        let moved = self.linked.payload.changed.iter().filter(|datum| matches!(datum.change, DataChange::Moved { .. }));
        if let Some(datum) = moved.clone().find(|datum| datum.name == hook.subject) {
            return Some(HookSubject::Datum {
                name: datum.name.clone(),
                old_address: datum.old_address,
                old_size: datum.old_size,
                section: datum.section,
                new_offset: datum.new_offset,
                new_size: datum.new_size,
            });
        }
        let Some(datum) = data.iter().find(|datum| datum.symbol.name == hook.subject) else {
            let names = data.iter().map(|datum| &datum.symbol.name).chain(moved.map(|datum| &datum.name));
            let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
            let names = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
            let message =
                format!("{} hook: `{}` has no new copy in the update; {names} has", hook.kind.name(), hook.subject);
            self.refuse("hook-subject", key, message, "declare the new copy with LUCOS_DATUM(old, new)");
            return None;
        };
        let new = (datum.unit, datum.piece);
        self.payload_symbol(new)?;
        let &(section, new_offset) = self.placed.get(&new)?;
        Some(HookSubject::Datum {
            name: datum.symbol.name.clone(),
            old_address: datum.symbol.address,
            old_size: u32::try_from(datum.symbol.size).ok()?,
            section,
            new_offset,
            new_size: u32::try_from(self.piece(new).1.size()).ok()?,
        })
    }

    /// Follows the calls of a hook through functions of its own object.
    fn look_into(&mut self, (unit, hook): Key, kind: HookKind) {
        let pieces = self.units[unit].patched;
        let mut seen = BTreeSet::from([hook]);
        let mut open: Vec<(PieceIndex, String)> = vec![(hook, format!("`{}`", pieces.piece(hook).name))];
        let mut findings = BTreeSet::new();
        while let Some((piece, way)) = open.pop() {
            for reloc in pieces.relocs(piece).iter().filter(|reloc| reloc.branch) {
                match pieces.target(reloc) {
                    Target::External(symbol) => {
                        let name = pieces.object.symbol(symbol).name.as_str();
                        match known(name) {
                            Known::Waits => findings.insert((true, way.clone(), name)),
                            Known::Locks => findings.insert((false, way.clone(), name)),
                            Known::Nothing => false,
                        };
                    }
                    Target::Piece(next, _) if pieces.piece(next).kind == PieceKind::Function && seen.insert(next) => {
                        open.push((next, format!("{way}, `{}`", pieces.piece(next).name)));
                    }
                    Target::Piece(..) => {}
                }
            }
        }
        for (waits, way, name) in findings {
            let kind = kind.name();
            if waits {
                let message =
                    format!("{kind} hook {way} calls `{name}`, which may sleep or wait for another processor");
                let help = "hooks run while all other processors stand still: use what never waits";
                self.refuse("hook-may-sleep", (unit, hook), message, help);
            } else {
                let message = format!("{kind} hook {way} takes a lock (`{name}`): a stopped thread may hold it");
                self.warn(
                    "hook-takes-lock",
                    (unit, hook),
                    message,
                    "use a trylock and veto, or do without: nobody else writes",
                );
            }
        }
    }

    fn warn(&mut self, rule: &'static str, (unit, piece): Key, message: String, help: &str) {
        let unit = &self.units[unit];
        let subject = unit.patched.piece(piece).name.clone();
        self.linked.warnings.push(Refusal {
            rule,
            unit: unit.name.to_owned(),
            subject,
            message,
            help: help.to_owned(),
        });
    }

    fn refuse_unit(&mut self, unit: usize, rule: &'static str, message: String, help: &str) {
        let unit = self.units[unit].name.to_owned();
        self.refusals.insert(Refusal { rule, unit, subject: String::new(), message, help: help.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_waits() {
        for name in [
            "mutex_lock",
            "mutex_lock_interruptible",
            "schedule",
            "schedule_timeout",
            "synchronize_rcu",
            "down",
            "down_read",
            "msleep",
        ] {
            assert!(matches!(known(name), Known::Waits), "{name}");
        }
        for name in ["_raw_spin_lock_irqsave", "_raw_read_lock"] {
            assert!(matches!(known(name), Known::Locks), "{name}");
        }
        for name in [
            "mutex_trylock",
            "mutex_unlock",
            "up_read",
            "down_trylock",
            "_raw_spin_trylock",
            "_raw_spin_unlock",
            "memcpy",
            "kfree",
        ] {
            assert!(matches!(known(name), Known::Nothing), "{name}");
        }
    }
}
