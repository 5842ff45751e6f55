//! Existing data that a change alters.
//!
//! Comes in: for each such datum of a unit, what is to become of it ([`DatumPlan`]). Decided: where the old datum is, that its
//! initial contents are those of the image, and that nothing goes on using the old one of a datum that moves. Goes out: the
//! new contents in the payload and a [`DataPatch`] for each, or refusals.

use super::{Key, Linker};
use crate::users::{self, By, User};
use diff_analyzer::object::Reloc;
use diff_analyzer::object_diff::blank;
use diff_analyzer::pieces::PieceIndex;
use diff_analyzer::transfer::{How, Transfer};
use lpk_format::{DataChange, DataPatch, Place, Step, StepKind};
use object::elf;
use std::ops::Range;

/// Where the kernel's image is mapped; what lies below is no address of it.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// What becomes of an existing datum.
#[derive(Debug, Clone)]
pub struct DatumPlan {
    /// In the original object.
    pub original: PieceIndex,
    /// In the patched object.
    pub patched: PieceIndex,
    /// What becomes of it.
    pub fate: Planned,
}

/// What is planned for a datum.
#[derive(Debug, Clone)]
pub enum Planned {
    /// It stays as it is, and new code uses it.
    Kept,
    /// It stays where it is, and bytes of it are written.
    InPlace {
        /// Bytes in which nothing was.
        added: Vec<Range<u64>>,
        /// Bytes whose initial contents change.
        edited: Vec<Range<u64>>,
        /// Whether they are written although the guest has changed them.
        overwrite: bool,
    },
    /// A new one takes its place.
    Moved {
        /// How the new one is made from the old one.
        to_new: Transfer,
        /// Back.
        to_old: Transfer,
    },
    /// A new one takes its place, and hooks carry the contents.
    ByHooks,
}

impl Planned {
    /// Whether new code uses another copy than old code.
    pub fn moves(&self) -> bool {
        matches!(self, Self::Moved { .. } | Self::ByHooks)
    }
}

impl Linker<'_, '_> {
    /// What is planned for a datum.
    pub(super) fn plan(&self, (unit, piece): Key) -> Option<&DatumPlan> {
        self.units[unit].data.iter().find(|plan| plan.patched == piece)
    }

    /// Whether new code uses a new copy of a datum that exists.
    pub(super) fn is_moved(&self, key: Key) -> bool {
        self.plan(key).is_some_and(|plan| plan.fate.moves())
    }

    /// Puts the new contents of all changed data into the payload.
    pub(super) fn change_data(&mut self) {
        for (unit_index, unit) in self.units.iter().enumerate() {
            for plan in unit.data.iter().filter(|plan| !matches!(plan.fate, Planned::Kept)) {
                self.change_datum((unit_index, plan.patched), plan);
            }
        }
    }

    fn change_datum(&mut self, key: Key, plan: &DatumPlan) {
        let Some(symbol) = self.existing(key, key) else { return };
        let Place::Kernel(old_address) = self.linked.payload.symbols[symbol as usize].place else {
            let message = "it is no datum of the image".to_owned();
            return self.refuse("data-layout", key, message, "report the datum");
        };
        let Some((section, new_offset)) = self.place_datum(key, key) else { return };
        let unit = &self.units[key.0];
        let (name, new_size) = (self.piece(key).1.name.clone(), self.piece(key).1.size() as u32);
        let old_size = unit.original.piece(plan.original).size();
        let change = match &plan.fate {
            Planned::Kept => return,
            Planned::InPlace { added, edited, overwrite } => {
                let Some((initial, slides)) = self.initial(key, plan.original, old_address) else { return };
                let short =
                    |ranges: &[Range<u64>]| ranges.iter().map(|range| range.start as u32..range.end as u32).collect();
                DataChange::InPlace {
                    initial,
                    slides,
                    added: short(added),
                    edited: short(edited),
                    overwrite: *overwrite,
                }
            }
            Planned::Moved { to_new, to_old } => {
                self.refuse_remaining_users(key, old_address..old_address + old_size);
                DataChange::Moved { to_new: steps(to_new), to_old: steps(to_old) }
            }
            Planned::ByHooks => {
                self.refuse_remaining_users(key, old_address..old_address + old_size);
                self.by_hooks.push((key, name.clone(), old_address));
                DataChange::Moved { to_new: Vec::new(), to_old: Vec::new() }
            }
        };
        let (unit, old_size) = (unit.name.to_owned(), old_size as u32);
        let patch = DataPatch { name, unit, old_address, old_size, section, new_offset, new_size, change };
        self.linked.payload.changed.push(patch);
    }

    /// The initial contents of an old datum as linked, and its fields that hold addresses of the kernel.
    fn initial(&mut self, key: Key, original: PieceIndex, address: u64) -> Option<(Vec<u8>, Vec<u32>)> {
        let unit = &self.units[key.0];
        let (piece, compiled) = (unit.original.piece(original), unit.original.bytes(original));
        let size = piece.size() as usize;
        let linked = self.image.bytes(address, size).map_or_else(|| vec![0; size], <[u8]>::to_vec);
        let relocs = unit.original.relocs(original);
        let plain = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes.resize(size, 0);
            blank(&mut bytes, relocs, piece.range.start);
            bytes
        };
        if plain(&linked) != plain(compiled) {
            let message = "its initial contents in the image are not those of the original source".to_owned();
            let help = "the source, configuration and compiler must be those the running kernel was built with";
            self.refuse("not-proved", key, message, help);
            return None;
        }
        let holds_address = |reloc: &&Reloc| {
            let at = (reloc.offset - piece.range.start) as usize;
            let word = linked.get(at..at + 8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
            reloc.kind == elf::R_X86_64_64.0 && word.is_some_and(|word| word >= KERNEL_MAP)
        };
        let slides =
            relocs.iter().filter(holds_address).map(|reloc| (reloc.offset - piece.range.start) as u32).collect();
        let is_zero = linked.iter().all(|&byte| byte == 0);
        Some((if is_zero { Vec::new() } else { linked }, slides))
    }

    /// All that refers to a datum that moves has to be carried: it would go on with the old one when the update has ended.
    pub(super) fn refuse_remaining_users(&mut self, key: Key, range: Range<u64>) {
        let old: Vec<Range<u64>> = self.carried.iter().filter_map(|carried| self.old_code(carried)).collect();
        let is_global = self.piece(key).1.global;
        if is_global && self.image.module().is_some() {
            let message = "other modules may use it".to_owned();
            return self.refuse("data-users", key, message, "change the datum in place, or keep it");
        }
        for User { field, by } in users::of(self.image, &range) {
            // What it holds of itself is for its transfer (`diff-analyzer/src/classify/initial.rs`) or for hooks.
            if range.contains(&field) || old.iter().any(|code| code.contains(&field)) {
                continue;
            }
            let (rule, message) = match by {
                By::Modules => ("data-users", "it is exported: modules may use it".to_owned()),
                By::Function(name) => ("data-users", format!("`{name}`, which is not replaced, uses it")),
                By::Datum(name) => ("data-stored", format!("datum `{name}` holds its address")),
                By::Section(section) => {
                    ("data-stored", format!("section {section} of the image holds its address, at {field:#x}"))
                }
            };
            let help = "change the datum in place if its layout allows that, or keep it and add a new one";
            self.refuse(rule, key, format!("it moves, and {message}"), help);
        }
    }
}

/// Steps of a transfer as the bundle has them.
fn steps(transfer: &Transfer) -> Vec<Step> {
    let step = |step: diff_analyzer::transfer::Move| Step {
        from: step.from.offset as u32,
        from_size: step.from.size as u32,
        to: step.to.offset as u32,
        to_size: step.to.size as u32,
        how: match step.how {
            How::Copy => StepKind::Copy,
            How::ZeroExtend => StepKind::ZeroExtend,
            How::SignExtend => StepKind::SignExtend,
            How::NarrowUnsigned => StepKind::NarrowUnsigned,
            How::NarrowSigned => StepKind::NarrowSigned,
            How::Constant(value) => StepKind::Constant(value),
        },
    };
    transfer.joined().into_iter().map(step).collect()
}
