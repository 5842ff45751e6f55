//! Which functions a bundle carries, and what forbids it.
//!
//! Comes in: the comparison of each unit. Decided: which functions are carried and which of these replace an old one, and
//! whether the rest of the kernel would still agree with them: nothing that exists may get a second copy, and nothing may
//! go on using an old function unnoticed. Goes out: [`Carried`] functions and the names that other units see, or refusals.

use super::{Carried, Key, Linker, Unit, is_cold};
use crate::refusal::Refusal;
use diff_analyzer::correlate::{is_fresh, without_number};
use diff_analyzer::object::Reloc;
use diff_analyzer::object_diff::{Change, Compared, is_clone};
use diff_analyzer::pieces::{Piece, PieceIndex, PieceKind, Pieces, Target};
use diff_analyzer::special::{SectionRole, why_not};
use object::elf;
use std::collections::BTreeSet;
use std::ops::Range;

/// Sections that tell of functions and do not lead to them.
const ABOUT_CODE: &[&str] = &["__mcount_loc", ".orc_unwind_ip", ".ibt_endbr_seal", "_kprobe_blacklist"];

/// Whether all that refers to a function are calls and jumps of functions of its own file.
fn only_called(pieces: &Pieces<'_>, function: PieceIndex) -> bool {
    calls_only(pieces, |target| matches!(target, Target::Piece(piece, _) if piece == function))
}

/// Whether all that refers to some targets are calls and jumps of functions.
fn calls_only(pieces: &Pieces<'_>, is_meant: impl Fn(Target) -> bool) -> bool {
    let refers = |reloc: &Reloc| is_meant(pieces.target(reloc));
    pieces.iter().all(|(index, piece)| {
        let mut references = pieces.relocs(index).iter().filter(|reloc| refers(reloc));
        references.all(|reloc| piece.kind == PieceKind::Function && reloc.branch)
    })
}

impl Linker<'_, '_> {
    pub(super) fn select(&mut self) {
        for (unit_index, unit) in self.units.iter().enumerate() {
            self.refuse_sections(unit);
            self.refuse_changed_data(unit_index, unit);
            for function in unit.diff.changed_functions() {
                self.select_function(unit_index, unit, function);
            }
        }
        self.refuse_declarations();
        self.select_declared();
        self.refuse_remaining_callers();
        self.note_globals();
        self.refuse_second_definitions();
        self.refuse_labels();
    }

    /// Records in a unit that nobody reads would be forgotten silently.
    fn refuse_declarations(&mut self) {
        for (index, unit) in self.units.iter().enumerate() {
            let read = self.declared.is_some_and(|declared| declared.unit == index);
            if !read && crate::declare::declares(unit.patched) {
                self.refusals.insert(Refusal {
                    rule: "declaration",
                    unit: unit.name.to_owned(),
                    subject: String::new(),
                    message: "it declares replacements or hooks, which belong into a file of their own".to_owned(),
                    help: "move them into a file given with --hooks or --update".to_owned(),
                });
            }
        }
    }

    /// Functions of a unit written by hand: all are new to it, and some replace one of the kernel.
    fn select_declared(&mut self) {
        let Some(declared) = self.declared else { return };
        for &piece in declared.functions.keys() {
            let key = (declared.unit, piece);
            if self.carried.iter().any(|carried| carried.key == key) {
                self.replacing.insert(key);
            }
        }
        for function in self.units[declared.unit].diff.changed_boot_functions() {
            let key = (declared.unit, function);
            let (pieces, piece) = self.piece(key);
            let section = &pieces.object.section(piece.section).name;
            let message = format!("`{}` is in {section}: nothing in an update runs at boot", piece.name);
            self.refuse("boot-setup", key, message, "set up in a pre hook (LUCOS_PRE) what new code needs");
        }
    }

    fn select_function(&mut self, unit_index: usize, unit: &Unit<'_, '_>, function: &Compared) {
        let key = (unit_index, function.patched);
        let piece = unit.patched.piece(function.patched);
        let original = function.original.filter(|_| matches!(function.change, Change::Changed(_)));
        let before = original.map(|original| (unit.original, original));
        for (pieces, index) in before.into_iter().chain([(unit.patched, function.patched)]) {
            let side = pieces.piece(index);
            let section = &pieces.object.section(side.section).name;
            let (rule, why) = match side.role {
                SectionRole::Code => continue,
                SectionRole::MarkedCode(_) if !self.is_noinstr(section) => continue,
                SectionRole::MarkedCode(_) => {
                    ("special-code", "this kernel has it among code that must not be probed or traced")
                }
                SectionRole::SpecialCode(why) => ("special-code", why),
                _ => ("unknown-section", why_not(section).unwrap_or("this version does not know it")),
            };
            let message = format!("`{}` is in section {section}: {why}", side.name);
            self.refused.insert(key);
            return self.refuse(rule, key, message, "leave it out of the diff, or reboot into the new kernel");
        }
        let resigned = original.is_some() && unit.diff.resigned.contains(&piece.name);
        if resigned && !piece.global && !only_called(unit.patched, function.patched) {
            let message = format!(
                "`{}` takes or returns other types than before, and is not only called by functions of its file",
                piece.name
            );
            return self.refuse(
                "signature-changed",
                key,
                message,
                "give the new version another name, and let the old one call it",
            );
        }
        // The entry of an old clone leads nowhere new: its callers come along, and what still runs expects the old one.
        if let Some(original) = original.filter(|_| !is_cold(&piece.name) && !is_clone(&piece.name) && !resigned) {
            let (before, after) = (global_names(unit.original, original), global_names(unit.patched, function.patched));
            for name in before.difference(&after) {
                let message = format!(
                    "`{name}` was another name of `{}` and is no longer: its callers would be redirected as well",
                    piece.name
                );
                self.refuse("alias-splits", key, message, "keep both names on one function");
            }
            self.replacing.insert(key);
        }
        self.carried.push(Carried { key, original });
    }

    /// A function that other units see and that takes other types now: all that may call the old one has to be carried.
    fn refuse_remaining_callers(&mut self) {
        let old: Vec<Range<u64>> = self.carried.iter().filter_map(|carried| self.old_code(carried)).collect();
        let resigned: Vec<(Key, Range<u64>)> = (self.carried.iter())
            .filter(|carried| {
                let (unit, piece) = (&self.units[carried.key.0], self.piece(carried.key).1);
                carried.original.is_some() && piece.global && unit.diff.resigned.contains(&piece.name)
            })
            .filter_map(|carried| Some((carried.key, self.old_code(carried)?)))
            .collect();
        for (key, code) in resigned {
            let name = self.piece(key).1.name.clone();
            let refused = self
                .remaining(key, &name, code.start, &old)
                .map(|who| format!("`{name}` takes or returns other types than before, and {who}"));
            if let Some(message) = refused {
                let help = "give the new version another name, and let the old one call it";
                self.refuse("signature-changed", key, message, help);
            }
        }
    }

    /// What goes on using the old version of a function, besides `old` code that gives way to new code.
    fn remaining(&self, key: Key, name: &str, address: u64, old: &[Range<u64>]) -> Option<String> {
        if self.image.module().is_some() {
            return Some("other modules may call it".to_owned());
        }
        for (index, unit) in self.units.iter().enumerate() {
            let only_called = calls_only(unit.patched, |target| match target {
                Target::Piece(piece, _) => (index, piece) == key,
                Target::External(symbol) => unit.patched.object.symbol(symbol).name == name,
            });
            if !only_called {
                return Some(format!("{} takes its address", unit.name));
            }
        }
        let goes = |field: u64| {
            let section = self.image.section_at(field).map_or("", |section| section.name.as_str());
            let gone = section.starts_with(".init.") || section.starts_with(".exit.");
            gone || ABOUT_CODE.contains(&section) || old.iter().any(|code| code.contains(&field))
        };
        let field = self.image.references(address).into_iter().find(|&field| !goes(field))?;
        Some(match self.image.symbols().containing(field) {
            Some((other, _)) => format!("`{other}`, which the diff does not change, refers to it"),
            None => {
                let section = self.image.section_at(field).map_or("", |section| section.name.as_str());
                format!("section {section} of the image refers to it, at {field:#x}")
            }
        })
    }

    /// Where the old version of a carried function is.
    pub(super) fn old_code(&self, carried: &Carried) -> Option<Range<u64>> {
        if let Some(old) = self.declared_function(carried.key) {
            return Some(old.symbol.address..old.symbol.address + old.symbol.size);
        }
        let unit = &self.units[carried.key.0];
        let original = carried.original?;
        let &address = unit.proof.functions.get(&original)?;
        Some(address..address + unit.original.piece(original).size())
    }

    fn refuse_sections(&mut self, unit: &Unit<'_, '_>) {
        let mut refuse = |rule, subject: &String, message: String, help: &str| {
            let (unit, subject) = (unit.name.to_owned(), subject.clone());
            self.refusals.insert(Refusal { rule, unit, subject, message, help: help.to_owned() });
        };
        for section in &unit.diff.unknown_sections {
            let why =
                why_not(section).unwrap_or("a running kernel has read it already, or this version does not know it");
            let message = format!("the change alters section {section}: {why}");
            refuse(
                "unknown-section",
                section,
                message,
                "leave that part out of the diff, or reboot into the new kernel",
            );
        }
    }

    /// Whether the kernel has a section among `.noinstr.text` (`NOINSTR_TEXT`, include/asm-generic/vmlinux.lds.h): since
    /// Linux 6.3 it has idle code there.
    fn is_noinstr(&self, section: &str) -> bool {
        let bound = |name: &str| self.image.symbols().address_of(name);
        let start = section.strip_prefix('.').map(|name| format!("__{}_start", name.replace('.', "_")));
        let range = bound("__noinstr_text_start").zip(bound("__noinstr_text_end"));
        let inside = |at: u64| range.is_some_and(|(start, end)| (start..end).contains(&at));
        start.and_then(|name| bound(&name)).is_some_and(inside)
    }

    /// What boot sets up, it has not set up for new data.
    pub(super) fn refuse_boot_setup(&mut self) {
        for (unit_index, unit) in self.units.iter().enumerate() {
            for function in unit.diff.changed_boot_functions() {
                for reloc in unit.patched.relocs(function) {
                    let key = match unit.patched.target(reloc) {
                        Target::Piece(piece, _) => (unit_index, piece),
                        Target::External(symbol) => match self.globals.get(&unit.patched.object.symbol(symbol).name) {
                            Some(&key) => key,
                            None => continue,
                        },
                    };
                    let (_, datum) = self.piece(key);
                    if has_state(datum)
                        && self.plan(key).is_none()
                        && self.placed.contains_key(&key)
                        && !self.is_ready_lock(key)
                    {
                        let message = format!(
                            "`{}`, which has run at boot, now refers to `{}`, which is new and which new code uses",
                            unit.patched.piece(function).name,
                            datum.name
                        );
                        let help = "new code would find it as no boot code has left it; set it up where it is used";
                        self.refuse("boot-setup", (unit_index, function), message, help);
                    }
                }
            }
        }
    }

    /// Whether a datum is a lock that its definition makes ready, so that boot code can only have taken and released it.
    fn is_ready_lock(&self, key: Key) -> bool {
        let (pieces, datum) = self.piece(key);
        let is_lock = self.units[key.0].diff.locks.contains(without_number(&datum.name));
        // All zero is ready where a lock is nothing but its state.
        let is_set = pieces.bytes(key.1).iter().any(|&byte| byte != 0) || !pieces.relocs(key.1).is_empty();
        is_lock && (is_set || datum.size() <= 8)
    }

    /// Existing data stay as they are here; what changes them is a Type 2 update.
    fn refuse_changed_data(&mut self, unit_index: usize, unit: &Unit<'_, '_>) {
        for (datum, difference) in unit.diff.changed_data() {
            let key = (unit_index, datum.patched);
            if self.plan(key).is_some() {
                continue;
            }
            let message = format!("existing datum `{}`: {difference}", unit.patched.piece(datum.patched).name);
            self.refuse("data-value", key, message, "existing data changes: this is a Type 2 update");
        }
    }

    /// Names that units see of each other; a weak definition gives way to another one.
    fn note_globals(&mut self) {
        for binding in [elf::STB_GLOBAL.0, elf::STB_WEAK.0] {
            for (unit_index, unit) in self.units.iter().enumerate() {
                for (index, piece) in unit.patched.iter().filter(|(_, piece)| piece.global) {
                    let symbols = piece.symbols.iter().map(|&symbol| unit.patched.object.symbol(symbol));
                    for symbol in symbols.filter(|symbol| symbol.binding == binding) {
                        self.globals.entry(symbol.name.clone()).or_insert((unit_index, index));
                    }
                }
            }
        }
    }

    /// A definition that is new in its unit, of a name that the kernel or another unit of the diff has: the rest of the
    /// kernel would go on using the other one.
    fn refuse_second_definitions(&mut self) {
        for (unit_index, unit) in self.units.iter().enumerate() {
            for compared in unit.diff.functions.iter().chain(&unit.diff.data) {
                let key = (unit_index, compared.patched);
                let piece = unit.patched.piece(compared.patched);
                let mut new = global_names(unit.patched, compared.patched);
                if let Some(original) = compared.original {
                    let original = unit.original.piece(original);
                    new.retain(|name| {
                        !original.symbols.iter().any(|&symbol| unit.original.object.symbol(symbol).name == *name)
                    });
                }
                for name in new {
                    if let Some(other) =
                        self.image.symbols().lookup(name).find(|symbol| symbol.global && !self.is_gone(symbol))
                        && self.declared_function(key).is_none_or(|old| old.symbol.address != other.address)
                    {
                        let message = format!(
                            "`{name}` is new in this unit, but the kernel has it elsewhere, at {:#x}",
                            other.address
                        );
                        self.refuse(
                            "second-definition",
                            key,
                            message,
                            "give it another name: code outside the diff goes on using the old one",
                        );
                    }
                    if self.globals.get(name).is_some_and(|&first| first != key) {
                        let message = format!("`{name}` is new in two units of the diff");
                        self.refuse("second-definition", key, message, "define it once");
                    }
                }
                if compared.change == Change::New && has_state(piece) && self.is_gone_elsewhere(unit_index, piece) {
                    let message = format!(
                        "datum `{}` is new in this unit and gone from another one of the diff: the live one may be meant",
                        piece.name
                    );
                    self.refuse("second-definition", key, message, "give it another name if it is a new datum");
                }
            }
        }
    }

    fn is_gone_elsewhere(&self, unit_index: usize, piece: &Piece) -> bool {
        let others = self.units.iter().enumerate().filter(|(other, _)| *other != unit_index);
        others.flat_map(|(_, unit)| unit.diff.removed.iter().map(|&gone| unit.original.piece(gone))).any(|gone| {
            gone.kind == PieceKind::Datum
                && has_state(gone)
                && without_number(&gone.name) == without_number(&piece.name)
        })
    }

    /// Existing data that hold places inside a carried function (`&&label`) would lead from new code into old code.
    fn refuse_labels(&mut self) {
        let carried: BTreeSet<Key> = self.carried.iter().map(|carried| carried.key).collect();
        for (unit_index, unit) in self.units.iter().enumerate() {
            for (index, piece) in unit.patched.iter() {
                if piece.kind != PieceKind::Datum || is_fresh(piece) || unit.diff.correlation.original(index).is_none()
                {
                    continue;
                }
                for reloc in unit.patched.relocs(index) {
                    if let Target::Piece(function, at) = unit.patched.target(reloc)
                        && at != 0
                        && carried.contains(&(unit_index, function))
                    {
                        let name = &unit.patched.piece(function).name;
                        let message =
                            format!("existing datum `{}` holds a place inside `{name}`, at {at:#x}", piece.name);
                        self.refuse(
                            "label-address",
                            (unit_index, function),
                            message,
                            "the function cannot be replaced",
                        );
                    }
                }
            }
        }
    }
}

fn has_state(piece: &Piece) -> bool {
    piece.kind == PieceKind::Datum && piece.role != SectionRole::ReadOnly && !is_fresh(piece)
}

/// Names of a piece that other units can see.
fn global_names<'p>(pieces: &'p Pieces<'_>, index: PieceIndex) -> BTreeSet<&'p str> {
    let symbols = pieces.piece(index).symbols.iter().map(|&symbol| pieces.object.symbol(symbol));
    symbols.filter(|symbol| symbol.binding != elf::STB_LOCAL.0).map(|symbol| symbol.name.as_str()).collect()
}
