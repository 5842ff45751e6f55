//! How the contents of a datum are carried from one layout to another.
//!
//! Comes in: two versions of a variable, with the layouts of their units. Decided: which bits of the one become which bits of
//! the other, and how; which members cannot be carried by rule. Goes out: [`Transfer`], for one direction; and
//! [`anchors`], the members that other objects point to, which make it wrong to move the datum at all.

use crate::dwarf_layout::{Layouts, Member, Shape, TypeKind, TypeLayout, Variable};
use crate::layout_diff;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::ops::Range;

/// Moves of one transfer beyond this are too many to be carried: a large array whose elements change.
const MAX_MOVES: usize = 1 << 14;
/// Nesting of types beyond this is taken for a circle.
const MAX_DEPTH: usize = 64;

/// A range of bits from the start of a datum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Bits {
    /// First bit; bit 0 is the lowest of byte 0.
    pub offset: u64,
    /// Number of bits.
    pub size: u64,
}

impl Bits {
    /// The bits behind this range.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.size)
    }

    /// Whether it is made of whole bytes.
    pub fn is_bytes(self) -> bool {
        self.offset.is_multiple_of(8) && self.size.is_multiple_of(8)
    }
}

impl Display for Bits {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (byte, bit) = (self.offset / 8, self.offset % 8);
        if self.is_bytes() { write!(f, "{byte}+{}", self.size / 8) } else { write!(f, "{byte}:{bit}+{}b", self.size) }
    }
}

/// How bits are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// As they are.
    Copy,
    /// A number without a sign that becomes wider.
    ZeroExtend,
    /// A number with a sign that becomes wider.
    SignExtend,
    /// A number without a sign that becomes narrower: its value must fit.
    NarrowUnsigned,
    /// A number with a sign that becomes narrower: its value must fit.
    NarrowSigned,
    /// A value that the author gave, whatever was there.
    Constant(u64),
}

impl Display for How {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copy => f.write_str("copy"),
            Self::ZeroExtend => f.write_str("widen, unsigned"),
            Self::SignExtend => f.write_str("widen, signed"),
            Self::NarrowUnsigned => f.write_str("narrow, unsigned, if it fits"),
            Self::NarrowSigned => f.write_str("narrow, signed, if it fits"),
            Self::Constant(value) => write!(f, "constant {value:#x}"),
        }
    }
}

/// One step of a transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Move {
    /// The member as the target names it; empty for the whole datum.
    pub member: String,
    /// Bits of the source.
    pub from: Bits,
    /// Bits of the target.
    pub to: Bits,
    /// How.
    pub how: How,
}

/// A member that no rule can carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stuck {
    /// The member as the target names it.
    pub member: String,
    /// Its bits in the target.
    pub to: Bits,
    /// Why.
    pub why: String,
    /// The step that carries it all the same, if the author says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<Move>,
}

/// All steps of one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Transfer {
    /// What is carried, in the order of the target's bits.
    pub moves: Vec<Move>,
    /// Members that keep what the target begins with: only it has them, or the datum is a constant.
    pub kept: Vec<String>,
    /// Members that only the source has: they are not carried.
    pub lost: Vec<String>,
    /// Members that both have and that cannot be carried.
    pub stuck: Vec<Stuck>,
}

impl Transfer {
    /// The steps with neighbours joined where both sides are contiguous: what a machine needs.
    pub fn joined(&self) -> Vec<Move> {
        let mut joined: Vec<Move> = Vec::new();
        for step in &self.moves {
            if let Some(last) = joined.last_mut()
                && (last.how, step.how) == (How::Copy, How::Copy)
                && last.from.end() == step.from.offset
                && last.to.end() == step.to.offset
            {
                last.from.size += step.from.size;
                last.to.size += step.to.size;
                last.member.clear();
            } else {
                joined.push(step.clone());
            }
        }
        joined
    }
}

/// A transfer as text, one step per line.
impl Display for Transfer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for step in &self.moves {
            let member = if step.member.is_empty() { "(all)" } else { &step.member };
            writeln!(f, "{member}: {} -> {}: {}", step.from, step.to, step.how)?;
        }
        for member in &self.kept {
            let member = if member.is_empty() { "(all)" } else { member };
            writeln!(f, "{member}: keeps its initial value")?;
        }
        for member in &self.lost {
            writeln!(f, "{member}: not carried")?;
        }
        for stuck in &self.stuck {
            writeln!(f, "{}: cannot be carried: {}", stuck.member, stuck.why)?;
        }
        Ok(())
    }
}

/// How `from` becomes `to`.
pub fn between(from: (&Layouts, &Variable), to: (&Layouts, &Variable)) -> Transfer {
    let mut walk = Walk { from: from.0, to: to.0, transfer: Transfer::default() };
    let side = |variable: &Variable| Value {
        shape: variable.shape.clone(),
        bits: Bits { offset: 0, size: variable.size.unwrap_or(0).saturating_mul(8) },
        text: variable.type_text.clone(),
    };
    walk.value("", &side(from.1), &side(to.1), 0);
    let mut transfer = walk.transfer;
    transfer.moves.retain(|step| step.to.size > 0);
    transfer.moves.sort_by_key(|step| step.to);
    transfer
}

/// Types whose objects know their own address or are pointed to by others, and what does that (`include/linux/`: list.h,
/// wait.h, mutex.h, rwsem.h, completion.h, timer.h, workqueue.h, hrtimer.h, kobject.h, swait.h, rbtree.h, plist.h).
const ANCHORS: &[(&str, &str)] = &[
    ("struct list_head", "its neighbours in the list, or it itself, point to it"),
    ("struct hlist_head", "the first entry points to it"),
    ("struct hlist_bl_head", "the first entry points to it"),
    ("struct hlist_nulls_head", "the first entry points to it"),
    ("struct hlist_node", "its neighbours in the list point to it"),
    ("struct rb_node", "its neighbours in the tree point to it"),
    ("struct plist_head", "its list points to it"),
    ("wait_queue_head_t", "its list of waiters points to it"),
    ("struct wait_queue_head", "its list of waiters points to it"),
    ("struct swait_queue_head", "its list of waiters points to it"),
    ("struct completion", "its list of waiters points to it"),
    ("struct mutex", "who holds it or waits for it goes on with the old one"),
    ("struct rw_semaphore", "who holds it or waits for it goes on with the old one"),
    ("struct semaphore", "who holds it or waits for it goes on with the old one"),
    ("struct raw_spinlock", "who holds it goes on with the old one"),
    ("raw_spinlock_t", "who holds it goes on with the old one"),
    ("struct spinlock", "who holds it goes on with the old one"),
    ("spinlock_t", "who holds it goes on with the old one"),
    ("rwlock_t", "who holds it goes on with the old one"),
    ("seqlock_t", "who holds it goes on with the old one"),
    ("struct timer_list", "the list of timers points to it"),
    ("struct hrtimer", "the tree of timers points to it"),
    ("struct work_struct", "the queue that it waits in points to it"),
    ("struct callback_head", "the queue that it waits in points to it"),
    ("struct kobject", "its children and files point to it"),
];

/// Members of a variable that other objects may point to, with the reason: path, and why.
pub fn anchors(layouts: &Layouts, variable: &Variable) -> Vec<(String, String)> {
    let mut found = Vec::new();
    anchors_in(layouts, &variable.shape, &variable.name, 0, &mut found);
    found
}

fn anchors_in(layouts: &Layouts, shape: &Shape, path: &str, depth: usize, found: &mut Vec<(String, String)>) {
    match shape {
        Shape::Array(_, element) => anchors_in(layouts, element, &format!("{path}[]"), depth, found),
        Shape::Named(key) => {
            if let Some((_, why)) = ANCHORS.iter().find(|(name, _)| name == key) {
                found.push((path.to_owned(), format!("it is a `{key}`: {why}")));
            } else if let Some(layout) = layouts.types.get(key)
                && depth < MAX_DEPTH
            {
                for leaf in layout.leaves() {
                    let path = format!("{path}.{}", leaf.path);
                    anchors_in(layouts, &leaf.member.shape, &path, depth + 1, found);
                }
            }
        }
        _ => {}
    }
}

/// The numbers and pointers that a variable is made of, as byte ranges, as far as debug information tells.
pub fn scalars(layouts: &Layouts, variable: &Variable) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    scalars_in(layouts, &variable.shape, 0..variable.size.unwrap_or(0), 0, &mut found);
    found
}

fn scalars_in(layouts: &Layouts, shape: &Shape, bytes: Range<u64>, depth: usize, found: &mut Vec<Range<u64>>) {
    let size = bytes.end.saturating_sub(bytes.start);
    match shape {
        Shape::Array(Some(count), element) if *count > 0 && found.len() < MAX_MOVES => {
            for start in (0..*count).map(|index| bytes.start + index * (size / count)) {
                scalars_in(layouts, element, start..start + size / count, depth, found);
            }
        }
        Shape::Named(key) if depth < MAX_DEPTH && found.len() < MAX_MOVES => match layouts.types.get(key) {
            Some(layout) if layout.kind == TypeKind::Struct => {
                for leaf in layout.leaves() {
                    let (start, end) = (leaf.member.bit_offset, leaf.member.bit_offset + leaf.member.bit_size);
                    let inner = bytes.start + start / 8..bytes.start + end.div_ceil(8);
                    scalars_in(layouts, &leaf.member.shape, inner, depth + 1, found);
                }
            }
            _ => found.push(bytes),
        },
        _ => found.push(bytes),
    }
}

/// One side of a value that is carried.
struct Value {
    shape: Shape,
    bits: Bits,
    text: String,
}

struct Walk<'a> {
    from: &'a Layouts,
    to: &'a Layouts,
    transfer: Transfer,
}

impl Walk<'_> {
    fn value(&mut self, path: &str, from: &Value, to: &Value, depth: usize) {
        if self.transfer.moves.len() >= MAX_MOVES || depth > MAX_DEPTH {
            let why = format!("it has more than {MAX_MOVES} parts");
            return self.stuck(path, to.bits, why);
        }
        match (&from.shape, &to.shape) {
            (Shape::Named(old), Shape::Named(new)) => match (self.from.types.get(old), self.to.types.get(new)) {
                _ if old == new && self.same_type(old, &mut BTreeSet::new()) => self.step(path, from, to, How::Copy),
                (Some(before), Some(after)) if old == new => self.members(path, (before, from), (after, to), depth),
                _ => self.retyped(path, from, to),
            },
            (Shape::Array(Some(old), before), Shape::Array(Some(new), after)) if *old > 0 && *new > 0 => {
                let part = |value: &Value, shape: &Shape, count: u64, index: u64| {
                    let size = value.bits.size / count;
                    let bits = Bits { offset: value.bits.offset + index * size, size };
                    Value { shape: shape.clone(), bits, text: value.text.clone() }
                };
                let count = *old.min(new);
                if from.bits.size / old == to.bits.size / new && self.same_shape(before, after) {
                    let whole = |value: &Value, all: u64| {
                        let bits = Bits { size: value.bits.size / all * count, ..value.bits };
                        Value { shape: value.shape.clone(), bits, text: value.text.clone() }
                    };
                    self.step(path, &whole(from, *old), &whole(to, *new), How::Copy);
                } else {
                    for index in 0..count {
                        let path = format!("{path}[{index}]");
                        self.value(&path, &part(from, before, *old, index), &part(to, after, *new, index), depth + 1);
                        if self.is_full() {
                            break;
                        }
                    }
                }
                let rest = |count: u64| format!("{path}[{}..{count}]", old.min(new));
                match old.cmp(new) {
                    std::cmp::Ordering::Less => self.transfer.kept.push(rest(*new)),
                    std::cmp::Ordering::Greater => self.transfer.lost.push(rest(*old)),
                    std::cmp::Ordering::Equal => {}
                }
            }
            (Shape::Array(..), Shape::Array(..)) if from.bits.size == 0 && to.bits.size == 0 => {} // no room, no contents
            (Shape::Pointer, Shape::Pointer) => self.step(path, from, to, How::Copy),
            (Shape::Other(_), Shape::Other(_)) if self.same_shape(&from.shape, &to.shape) => {
                self.step(path, from, to, How::Copy);
            }
            (Shape::Signed(_) | Shape::Unsigned(_), Shape::Signed(_) | Shape::Unsigned(_)) => {
                let how = match (from.bits.size.cmp(&to.bits.size), &from.shape, &to.shape) {
                    (std::cmp::Ordering::Equal, ..) => How::Copy,
                    (std::cmp::Ordering::Less, Shape::Signed(_), _) => How::SignExtend,
                    (std::cmp::Ordering::Less, ..) => How::ZeroExtend,
                    (std::cmp::Ordering::Greater, _, Shape::Signed(_)) => How::NarrowSigned,
                    (std::cmp::Ordering::Greater, ..) => How::NarrowUnsigned,
                };
                self.step(path, from, to, how);
            }
            _ => self.retyped(path, from, to),
        }
    }

    /// Members of a type that is laid out differently, by name.
    fn members(&mut self, path: &str, old: (&TypeLayout, &Value), new: (&TypeLayout, &Value), depth: usize) {
        if old.0.kind == TypeKind::Union {
            return self.stuck(path, new.1.bits, format!("nothing tells which member of `{}` is in use", old.0.name));
        }
        let renamed = layout_diff::renamed_members(old.0, new.0);
        let (before, after) = (blocks(&old.0.members), blocks(&new.0.members));
        let mut left: BTreeMap<&str, &Member> = before.iter().map(|(path, member)| (path.as_str(), *member)).collect();
        let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        for (name, member) in &after {
            let source = renamed.get(name.as_str()).map_or(name.as_str(), String::as_str);
            let Some(origin) = left.remove(source) else {
                self.transfer.kept.push(join(name));
                continue;
            };
            let value = |member: &Member, whole: &Value| Value {
                shape: member.shape.clone(),
                bits: Bits { offset: whole.bits.offset + member.bit_offset, size: member.bit_size },
                text: member.type_text.clone(),
            };
            let (from, to) = (value(origin, old.1), value(member, new.1));
            if member.members.is_empty() && origin.members.is_empty() {
                self.value(&join(name), &from, &to, depth + 1);
            } else if self.same_block(origin, member) {
                self.step(&join(name), &from, &to, How::Copy);
            } else {
                self.stuck(&join(name), to.bits, "a union in it is laid out differently".to_owned());
            }
        }
        self.transfer.lost.extend(left.into_keys().map(join));
    }

    /// Whether an anonymous union has the same contents in both versions, wherever it lies.
    fn same_block(&self, before: &Member, after: &Member) -> bool {
        let relative =
            |member: &Member, start: u64| (member.bit_offset - start, member.bit_size, member.type_text.clone());
        before.bit_size == after.bit_size
            && before.members.len() == after.members.len()
            && before.members.iter().zip(&after.members).all(|(old, new)| {
                relative(old, before.bit_offset) == relative(new, after.bit_offset)
                    && old.name == new.name
                    && old.embeds.iter().all(|key| self.same_type(key, &mut BTreeSet::new()))
                    && (old.members.is_empty() || self.same_block(old, new))
            })
    }

    /// Whether a type is laid out alike in both versions, with all that is inside.
    fn same_type(&self, key: &str, seen: &mut BTreeSet<String>) -> bool {
        if !seen.insert(key.to_owned()) {
            return true;
        }
        match (self.from.types.get(key), self.to.types.get(key)) {
            (Some(before), Some(after)) => {
                let place =
                    |member: &Member| (member.name.clone(), member.bit_offset, member.bit_size, member.shape.clone());
                let (old, new) = (before.leaves(), after.leaves());
                before.size == after.size
                    && old.len() == new.len()
                    && old.iter().zip(&new).all(|(old, new)| {
                        place(old.member) == place(new.member)
                            && old.member.embeds.iter().all(|inner| self.same_type(inner, seen))
                    })
            }
            (before, after) => before.is_none() && after.is_none(),
        }
    }

    /// Whether values of two shapes are alike, bit for bit.
    fn same_shape(&self, before: &Shape, after: &Shape) -> bool {
        before == after
            && match before {
                Shape::Array(_, inner) => self.same_shape(inner, inner),
                Shape::Named(key) => self.same_type(key, &mut BTreeSet::new()),
                // Types are inside by name only.
                Shape::Other(text) => {
                    let mut inside = self.from.types.keys().filter(|key| text.contains(key.as_str()));
                    inside.all(|key| self.same_type(key, &mut BTreeSet::new()))
                }
                Shape::Signed(_) | Shape::Unsigned(_) | Shape::Pointer => true,
            }
    }

    fn is_full(&self) -> bool {
        self.transfer.moves.len() >= MAX_MOVES
    }

    fn step(&mut self, member: &str, from: &Value, to: &Value, how: How) {
        self.transfer.moves.push(Move { member: member.to_owned(), from: from.bits, to: to.bits, how });
    }

    fn retyped(&mut self, path: &str, from: &Value, to: &Value) {
        self.stuck(path, to.bits, format!("it changes from `{}` to `{}`", from.text, to.text));
    }

    fn stuck(&mut self, member: &str, to: Bits, why: String) {
        self.transfer.stuck.push(Stuck { member: member.to_owned(), to, why, step: None });
    }
}

/// Members by path, anonymous structs opened; a union is one block, named after its first member when it has no name.
fn blocks(members: &[Member]) -> Vec<(String, &Member)> {
    let mut found = Vec::new();
    for member in members {
        let is_union = member.type_text.contains("union {");
        let inside = || blocks(&member.members);
        if member.members.is_empty() || is_union {
            let name = match (&member.name, inside().first()) {
                (name, _) if !name.is_empty() => name.clone(),
                (_, Some((first, _))) => format!("(union of {first})"),
                (_, None) => member.type_text.clone(),
            };
            found.push((name, member));
        } else if member.name.is_empty() {
            found.extend(inside());
        } else {
            found.extend(inside().into_iter().map(|(path, inner)| (format!("{}.{path}", member.name), inner)));
        }
    }
    found
}
