//! Which instruction of the old function is which of the new one.
//!
//! Comes in: both functions. Decided: pairs of equal instructions, in order, that lead to each other's counterparts. Equal means:
//! the same operation on the same registers and the same bytes of the frame, and fields that refer to the same. Goes out: a [`Pairing`].
//!
//! The order is that of the graph, not of the code, which compilers lay out as they like. Sequences are compared from their beginnings and from their ends; what pairs otherwise from there is ambiguous and does not pair.

use super::code::{self, Field, FieldOf, Kind, Node};
use super::frame::{self, Frames};
use super::{Moved, Side};
use crate::object_diff::Comparison;
use crate::pieces::{Pieces, Target};
use iced_x86::{OpKind, Register};
use similar::{Algorithm, DiffOp, capture_diff_slices};
use std::collections::{BTreeMap, BTreeSet};

/// Pairs of instructions.
pub(super) struct Pairing {
    to_new: BTreeMap<usize, usize>,
    to_old: BTreeMap<usize, usize>,
    /// Instructions of the new function that refer to data which move.
    moved: Vec<bool>,
}

impl Pairing {
    /// The counterpart of an instruction of the old function.
    pub(super) fn new_of(&self, old: usize) -> Option<usize> {
        self.to_new.get(&old).copied()
    }

    /// The counterpart of an instruction of the new function.
    pub(super) fn old_of(&self, new: usize) -> Option<usize> {
        self.to_old.get(&new).copied()
    }

    /// All pairs.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        self.to_new.iter().map(|(old, new)| (*old, *new))
    }

    /// Whether an instruction of the new function refers to a datum of which the old one uses another copy.
    pub(super) fn is_moved(&self, new: usize) -> bool {
        self.moved[new]
    }
}

/// Pairs the instructions of two functions.
pub(super) fn pair(
    (before, after): (&Side, &Side),
    comparison: &Comparison<'_, '_>,
    patched: &Pieces<'_>,
    moved: Moved<'_>,
) -> Pairing {
    let mut names = Names { comparison, old: Vec::new(), new: Vec::new() };
    let (old, new) = (&before.graph.reached, &after.graph.reached);
    let old_keys: Vec<Key> = old.iter().map(|node| key(before, *node, |field| names.of_old(field))).collect();
    let new_keys: Vec<Key> = new.iter().map(|node| key(after, *node, |field| names.of_new(field))).collect();
    let forth = equal(&old_keys, &new_keys);
    let reversed = |keys: &[Key]| keys.iter().rev().cloned().collect::<Vec<Key>>();
    let back = equal(&reversed(&old_keys), &reversed(&new_keys));
    let (last_old, last_new) = (old.len().wrapping_sub(1), new.len().wrapping_sub(1));
    let both = forth.into_iter().filter(|(x, y)| back.get(&(last_old - x)) == Some(&(last_new - y)));
    let mut to_new: BTreeMap<usize, usize> = both.map(|(x, y)| (old[x], new[y])).collect();
    loop {
        let paired: BTreeSet<usize> = to_new.values().copied().collect();
        let astray = to_new.iter().filter(|pair| !agree(before, after, (&to_new, &paired), *pair));
        let astray: Vec<usize> = astray.map(|(old, _)| *old).collect();
        if astray.is_empty() {
            break;
        }
        astray.iter().for_each(|old| _ = to_new.remove(old));
    }
    let is_moved = |field: &Field| match field.target {
        Target::Piece(piece, _) => moved.data.contains(&piece),
        Target::External(symbol) => moved.names.contains(&patched.object.symbol(symbol).name),
    };
    let moved = after.graph.nodes.iter().map(|node| node.fields.iter().any(is_moved)).collect();
    Pairing { to_old: to_new.iter().map(|(x, y)| (*y, *x)).collect(), to_new, moved }
}

/// Whether what runs behind a pair is a pair, or has none on its side.
fn agree(
    before: &Side,
    after: &Side,
    (pairs, paired): (&BTreeMap<usize, usize>, &BTreeSet<usize>),
    (old, new): (&usize, &usize),
) -> bool {
    let steps = before.graph.nodes[*old].steps.iter().zip(&after.graph.nodes[*new].steps);
    steps.into_iter().all(|steps| match steps {
        (None, None) => true,
        (Some(x), Some(y)) => pairs.get(x).is_none_or(|there| there == y || !paired.contains(y)),
        _ => false,
    })
}

/// What makes an instruction what it is.
type Key = Vec<u64>;

/// Positions of equal keys.
fn equal(old: &[Key], new: &[Key]) -> BTreeMap<usize, usize> {
    let operations = capture_diff_slices(Algorithm::Myers, old, new);
    let runs = operations.into_iter().filter_map(|operation| match operation {
        DiffOp::Equal { old_index, new_index, len } => Some((0..len).map(move |at| (old_index + at, new_index + at))),
        _ => None,
    });
    runs.flatten().collect()
}

/// Numbers for what fields refer to: equal numbers mean the same thing.
struct Names<'a, 'o> {
    comparison: &'a Comparison<'a, 'o>,
    old: Vec<(Target, i64)>,
    new: Vec<(Target, i64)>,
}

impl Names<'_, '_> {
    fn of_old(&mut self, field: &Field) -> u64 {
        let name = (field.target, addend(field));
        let known = self.old.iter().position(|known| *known == name);
        known.unwrap_or_else(|| {
            self.old.push(name);
            self.old.len() - 1
        }) as u64
    }

    /// All of the old function are known by then.
    fn of_new(&mut self, field: &Field) -> u64 {
        let (target, addend) = (field.target, addend(field));
        let same = |old: &(Target, i64)| self.comparison.same_target(old.0, target, old.1 == addend);
        if let Some(at) = self.old.iter().position(same) {
            return at as u64;
        }
        let known = self.new.iter().position(|known| *known == (target, addend));
        let at = known.unwrap_or_else(|| {
            self.new.push((target, addend));
            self.new.len() - 1
        });
        (self.old.len() + at) as u64
    }
}

/// A place in a piece says itself how far behind its start it is.
fn addend(field: &Field) -> i64 {
    if matches!(field.target, Target::Piece(..)) { 0 } else { field.addend }
}

fn key(side: &Side, index: usize, mut name: impl FnMut(&Field) -> u64) -> Key {
    let node = &side.graph.nodes[index];
    let instruction = &node.instruction;
    let operation = match code::positive(node) {
        Some(condition) => [0, condition as u64],
        None => [1, instruction.code().as_near_branch() as u64],
    };
    let mut key = [operation[0], operation[1], prefixes(node)].to_vec();
    let mut named = |of: FieldOf| node.fields.iter().find(|field| field.of == of).map(&mut name);
    for operand in 0..instruction.op_count() {
        match instruction.op_kind(operand) {
            OpKind::Register => key.extend([1, instruction.op_register(operand) as u64]),
            OpKind::NearBranch64 => match named(FieldOf::Immediate) {
                Some(name) if !matches!(node.kind, Kind::Branch) => key.extend([2, name]),
                _ => key.push(3),
            },
            OpKind::Memory => {
                let displacement = named(FieldOf::Displacement);
                key.extend(memory(&side.frames, index, node, displacement));
            }
            kind => match instruction.try_immediate(operand) {
                Ok(value) => key.extend(named(FieldOf::Immediate).map_or([4, value], |name| [5, name])),
                Err(_) => key.extend([6, kind as u64]),
            },
        }
    }
    if instruction.stack_pointer_increment() != 0 {
        key.extend([7, side.frames.depth(index).unwrap_or(1) as u64]);
    }
    if let Some(site) = &node.site {
        key.push(8);
        key.extend(site.iter().map(|byte| u64::from(*byte)));
    }
    if !node.handler.is_empty() {
        key.push(14);
        key.extend(node.handler.iter().map(|byte| u64::from(*byte)));
    }
    for field in &node.fields {
        match field.of {
            FieldOf::Key => key.extend([9, name(field)]),
            FieldOf::Replacement(at) => key.extend([10, at, name(field)]),
            FieldOf::Displacement | FieldOf::Immediate => {}
        }
    }
    key
}

fn prefixes(node: &Node) -> u64 {
    let instruction = &node.instruction;
    let flags = [
        instruction.has_lock_prefix(),
        instruction.has_rep_prefix(),
        instruction.has_repne_prefix(),
        matches!(node.kind, Kind::Branch),
    ];
    flags.into_iter().fold(0, |flags, flag| flags << 1 | u64::from(flag))
}

/// An operand in memory: bytes of the frame by their place, others by how they are addressed.
fn memory(frames: &Frames, index: usize, node: &Node, displacement: Option<u64>) -> Vec<u64> {
    let instruction = &node.instruction;
    let (base, scale) = (instruction.memory_base(), u64::from(instruction.memory_index_scale()));
    let place = frames.held(index).and_then(|held| frame::in_frame(&held, base, instruction.memory_displacement64()));
    let index = instruction.memory_index();
    let segment = instruction.memory_segment() as u64;
    if let (Some(at), None) = (place, displacement) {
        let index = if index == Register::None { [0, 0] } else { [index as u64, scale] };
        return [vec![11, at as u64, segment], index.to_vec()].concat();
    }
    let by = displacement.map_or([12, instruction.memory_displacement64()], |name| [13, name]);
    [vec![base as u64, index as u64, scale, segment], by.to_vec()].concat()
}
