//! The ways through a compiled function.
//!
//! Comes in: an object in pieces, a function. Decided: which instruction follows which: branches, parts in other sections
//! (`.cold`), static keys, faults that code provides for; where a function is left, and where it ends for good. Goes out:
//! [`Flow`], or the fact that some way is not known.

use crate::pieces::{Entry, PieceIndex, PieceKind, Pieces, Target};
use crate::special::Table;
use iced_x86::{Code, ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register, RflagsBits};
use std::collections::HashMap;

/// An instruction: piece, and offset in it.
pub type Place = (PieceIndex, u64);

/// A function in steps.
#[derive(Debug)]
pub struct Flow {
    /// Its instructions.
    pub steps: HashMap<Place, Step>,
    /// Whether all ways are known.
    pub whole: bool,
}

/// An instruction.
#[derive(Debug, Default)]
pub struct Step {
    /// What may come next; of a conditional branch the target last.
    pub next: Vec<Place>,
    /// Whether the function is left here.
    pub leaves: bool,
    /// A function of the object that it calls or goes on in.
    pub calls: Option<PieceIndex>,
    /// Whether it calls anything.
    pub is_call: bool,
    /// Of a conditional branch that decides on zero or on sign: when it is taken.
    pub condition: Option<ConditionCode>,
    /// What becomes of the flags.
    pub flags: Flags,
}

/// What an instruction does to the flags.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Flags {
    /// Nothing.
    #[default]
    Kept,
    /// They say whether the result of the last call is zero (`test eax, eax`).
    OfResult,
    /// Anything else.
    Written,
}

/// Functions that do not return, and behind whose call the compiler has something else (tools/objtool/check.c,
/// `__dead_end_function`).
const NO_RETURN: &[&str] = &[
    "__stack_chk_fail",
    "__reiserfs_panic",
    "cpu_bringup_idle",
    "do_exit",
    "do_group_exit",
    "do_task_dead",
    "ex_handler_msr_mce",
    "fortify_panic",
    "__fortify_panic",
    "hlt_play_dead",
    "kthread_complete_and_exit",
    "kthread_exit",
    "lbug_with_loc",
    "machine_real_restart",
    "make_task_dead",
    "__module_put_and_kthread_exit",
    "panic",
    "panic_smp_self_stop",
    "rewind_stack_and_make_dead",
    "sev_es_terminate",
    "snp_abort",
    "stop_this_cpu",
    "usercopy_abort",
    "x86_64_start_reservations",
];

impl Flow {
    /// Follows a function from its start.
    pub fn of(pieces: &Pieces<'_>, function: PieceIndex) -> Self {
        let mut walk = Walk { pieces, function, more: HashMap::new(), seen: Vec::new(), whole: true };
        let mut steps = HashMap::new();
        let mut left: Vec<Place> = vec![(function, 0)];
        while let Some(place) = left.pop() {
            if steps.contains_key(&place) {
                continue;
            }
            let step = walk.step(place);
            left.extend(&step.next);
            steps.insert(place, step);
        }
        Self { steps, whole: walk.whole }
    }
}

struct Walk<'p, 'o> {
    pieces: &'p Pieces<'o>,
    function: PieceIndex,
    /// Ways that tables add: of static keys and of faults.
    more: HashMap<Place, Vec<Place>>,
    /// Pieces whose tables are in `more`.
    seen: Vec<PieceIndex>,
    whole: bool,
}

/// Where a branch leads.
enum Goal {
    /// To an instruction of the same function.
    Inside(Place),
    /// To another function of the object.
    Function(PieceIndex),
    /// To a function elsewhere.
    Name(String),
}

impl Walk<'_, '_> {
    fn step(&mut self, place: Place) -> Step {
        self.read_tables(place.0);
        let (piece, offset) = place;
        let code = self.pieces.bytes(piece).get(offset as usize..).unwrap_or_default();
        let start = self.pieces.piece(piece).range.start;
        let mut step = Step::default();
        // Behind the last instruction: the compiler knew that a call does not return.
        if code.is_empty() {
            return step;
        }
        let instruction = Decoder::with_ip(64, code, start + offset, DecoderOptions::NONE).decode();
        let after = (piece, offset + instruction.len() as u64);
        step.flags = flags(&instruction);
        match instruction.flow_control() {
            FlowControl::Next => step.next.push(after),
            FlowControl::Call | FlowControl::IndirectCall => {
                step.is_call = true;
                let returns = match self.goal(place, &instruction) {
                    Some(Goal::Name(name)) => !NO_RETURN.contains(&name.as_str()),
                    Some(Goal::Function(callee)) => {
                        step.calls = Some(callee);
                        !NO_RETURN.contains(&self.pieces.piece(callee).name.as_str())
                    }
                    _ => true,
                };
                step.next.extend(returns.then_some(after));
            }
            FlowControl::ConditionalBranch => {
                step.condition = Some(instruction.condition_code());
                step.next.push(after);
                self.branch(place, &instruction, &mut step);
            }
            FlowControl::UnconditionalBranch => self.branch(place, &instruction, &mut step),
            FlowControl::IndirectBranch => {
                // A table of places, or a call at the end of the function.
                let table = instruction.op0_kind() == OpKind::Memory && instruction.memory_index() != Register::None;
                (self.whole, step.leaves, step.is_call) = (self.whole && !table, true, true);
            }
            FlowControl::Return => step.leaves = true,
            FlowControl::Interrupt => {}
            FlowControl::Exception if instruction.code() == Code::Ud2 => {
                step.next.extend(self.warns(place).then_some(after))
            }
            FlowControl::Exception => {}
            FlowControl::XbeginXabortXend => step.next.push(after),
        }
        if let Some(more) = self.more.get(&place) {
            step.next.extend(more);
        }
        step
    }

    fn branch(&mut self, place: Place, instruction: &Instruction, step: &mut Step) {
        match self.goal(place, instruction) {
            Some(Goal::Inside(goal)) => step.next.push(goal),
            Some(Goal::Function(callee)) => (step.leaves, step.is_call, step.calls) = (true, true, Some(callee)),
            // A return thunk, or a call at the end of the function.
            Some(Goal::Name(name)) => {
                step.is_call = name != "__x86_return_thunk";
                step.leaves = !NO_RETURN.contains(&name.as_str());
            }
            None => self.whole = false,
        }
    }

    fn goal(&self, (piece, offset): Place, instruction: &Instruction) -> Option<Goal> {
        let here = self.pieces.piece(piece);
        let (start, end) = (here.range.start + offset, here.range.start + offset + instruction.len() as u64);
        let reloc = self.pieces.relocs_in(here.section, start..end).iter().find(|reloc| reloc.branch);
        let Some(reloc) = reloc else {
            let near = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64;
            let target = near.then(|| instruction.near_branch64()).filter(|target| here.range.contains(target))?;
            return Some(Goal::Inside((piece, target - here.range.start)));
        };
        Some(match self.pieces.target(reloc) {
            Target::External(symbol) => Goal::Name(self.pieces.object.symbol(symbol).name.clone()),
            Target::Piece(other, at) => {
                let at = u64::try_from(at).ok()?;
                let other_piece = self.pieces.piece(other);
                let other_function = other_piece.kind == PieceKind::Function && !self.is_part(other);
                if other_function && at == 0 {
                    Goal::Function(other)
                } else if other_function || !other_piece.role.is_code() && other_piece.kind != PieceKind::Anonymous {
                    return None;
                } else {
                    Goal::Inside((other, at))
                }
            }
        })
    }

    /// Whether a piece is the function itself or its unlikely part.
    fn is_part(&self, piece: PieceIndex) -> bool {
        let base = |piece: PieceIndex| {
            let name = self.pieces.piece(piece).name.as_str();
            name.split_once(".cold").map_or(name, |(base, _)| base).to_owned()
        };
        piece == self.function || base(piece) == base(self.function)
    }

    /// Whether the kernel goes on behind an undefined instruction: `WARN`, not `BUG` (`BUGFLAG_WARNING`, include/asm-generic/bug.h;
    /// the flags are the last member of `struct bug_entry`).
    fn warns(&self, (piece, offset): Place) -> bool {
        let entries =
            self.pieces.entries(piece).iter().filter(|entry| entry.table == Table::Bugs && entry.place == offset);
        let flags = |entry: &Entry| -> Option<u8> {
            let data = &self.pieces.object.section(entry.section).data;
            data.get((entry.offset + entry.size).checked_sub(2)? as usize).copied()
        };
        entries.filter_map(flags).any(|flags| flags & 1 != 0)
    }

    /// Ways that the kernel takes by its tables: `struct jump_entry` and `struct exception_table_entry` both begin with the place
    /// and the place to go on at.
    fn read_tables(&mut self, piece: PieceIndex) {
        if self.seen.contains(&piece) {
            return;
        }
        self.seen.push(piece);
        for entry in self.pieces.entries(piece) {
            if !matches!(entry.table, Table::JumpLabels | Table::Exceptions) {
                continue;
            }
            let field = entry.offset + 4..entry.offset + 8;
            let Some(reloc) = self.pieces.relocs_in(entry.section, field).first() else { continue };
            match self.pieces.resolve(reloc.symbol, reloc.addend) {
                Target::Piece(to, at) if self.is_part(to) => {
                    self.more
                        .entry((piece, entry.place))
                        .or_default()
                        .extend(u64::try_from(at).ok().map(|at| (to, at)));
                }
                _ => {}
            }
        }
    }
}

fn flags(instruction: &Instruction) -> Flags {
    let result = |register: Register| matches!(register, Register::RAX | Register::EAX | Register::AX | Register::AL);
    let of_result = instruction.mnemonic() == iced_x86::Mnemonic::Test
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register
        && instruction.op0_register() == instruction.op1_register()
        && result(instruction.op0_register());
    match () {
        () if of_result => Flags::OfResult,
        () if instruction.rflags_modified() & (RflagsBits::ZF | RflagsBits::SF) != 0 => Flags::Written,
        () => Flags::Kept,
    }
}
