//! Which datum of the patched object is which datum of the original.
//!
//! Comes in: two objects in pieces. Decided: pairs of data and functions. Names pair, whatever their binding. Static
//! locals carry a number that the compiler hands out in order of appearance (`state.12`), so their names pair without it,
//! and only with one of the same function; where several remain, functions whose code has kept its shape decide. What
//! stays open is ambiguous: it may be the live datum of the kernel or a new one. Goes out: [`Correlation`].

use crate::object_diff::same_kind;
use crate::pieces::{Piece, PieceIndex, PieceKind, Pieces, Target};
use crate::special::SectionRole;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

/// Pairs of pieces, by the patched one.
#[derive(Debug, Default)]
pub struct Correlation {
    pairs: HashMap<PieceIndex, PieceIndex>,
    ambiguous: HashSet<PieceIndex>,
}

impl Correlation {
    /// The original of a patched piece.
    pub fn original(&self, patched: PieceIndex) -> Option<PieceIndex> {
        self.pairs.get(&patched).copied()
    }

    /// Whether a patched datum has several possible originals and nothing tells them apart.
    pub fn is_ambiguous(&self, patched: PieceIndex) -> bool {
        self.ambiguous.contains(&patched)
    }

    /// All originals that have a patched counterpart.
    pub fn originals(&self) -> HashSet<PieceIndex> {
        self.pairs.values().copied().collect()
    }
}

/// Whether a piece is data that belongs to one place in the code and has no state worth keeping: always a fresh copy.
pub fn is_fresh(piece: &Piece) -> bool {
    !piece.global && piece.kind == PieceKind::Datum && is_fresh_name(&piece.name, piece.role == SectionRole::ReadOnly)
}

fn is_fresh_name(name: &str, read_only: bool) -> bool {
    const FRESH: [&str; 14] = [
        "__func__",
        "__FUNCTION__",
        "__PRETTY_FUNCTION__",
        "__already_done",
        "__warned",
        "___done",
        "__key",
        "__msg",
        "_rs",
        "_entry",
        "_entry_ptr",
        "descriptor",
        "__ratelimit",
        "CSWTCH",
    ];
    let stem = without_number(name);
    // Without a number it is no static local, but a datum of the file that happens to have that name.
    (FRESH.contains(&stem) && stem != name)
        || stem.starts_with("__UNIQUE_ID_")
        || stem.starts_with(".L")
        // A compound literal that can be written has state like any other datum.
        || (read_only && stem.starts_with("__compound_literal"))
}

/// A name without the compiler's number: `state.12` is `state`.
pub fn without_number(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((stem, number))
            if !stem.is_empty() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) =>
        {
            stem
        }
        _ => name,
    }
}

/// A name without any number of the compiler or the preprocessor: `__UNIQUE_ID_ddebug254.3` is `__UNIQUE_ID_ddebug`
/// (`__UNIQUE_ID`, include/linux/compiler.h, ends in `__COUNTER__`).
pub fn without_counter(name: &str) -> &str {
    let stem = without_number(name);
    if stem.starts_with("__UNIQUE_ID_") { stem.trim_end_matches(|c: char| c.is_ascii_digit()) } else { stem }
}

/// A name in a list of BTF ids without its number: `__BTF_ID__struct__file__91234` is `__BTF_ID__struct__file`
/// (`__ID`, include/linux/btf_ids.h, ends in `__COUNTER__` and `__LINE__`).
fn without_btf_number(name: &str) -> &str {
    match name.rsplit_once("__") {
        Some((stem, number)) if stem.starts_with("__BTF_ID__") && number.bytes().all(|b| b.is_ascii_digit()) => stem,
        _ => name,
    }
}

/// The function of the source that a function of the object was made from: `foo` of `foo.isra.0.cold`.
fn source_name(name: &str) -> &str {
    match name.find('.') {
        Some(end) if end > 0 => &name[..end],
        _ => name,
    }
}

/// Pairs the named pieces of two objects.
pub fn correlate(original: &Pieces<'_>, patched: &Pieces<'_>) -> Correlation {
    let mut this = Correlation::default();
    let (old, new) = (groups(original), groups(patched));
    let mut open = Vec::new();
    for (key, new_members) in &new {
        let Some(old_members) = old.get(key) else { continue };
        match (old_members.as_slice(), new_members.as_slice()) {
            ([old], [new]) if !key.numbered => {
                this.pairs.insert(*new, *old);
            }
            _ => open.push((old_members, new_members)),
        }
    }
    pair_aliases(&mut this, original, patched);
    pair_btf_ids(&mut this, original, patched);
    let evidence = evidence(original, patched, &this);
    let users = (users(original), users(patched));
    for (old_members, new_members) in open {
        settle(&mut this, &evidence, &users, (old_members, new_members));
    }
    doubt_what_moved(&mut this, original, patched);
    this
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    function: bool,
    /// Whether it is a static local, whose name has a number.
    numbered: bool,
    /// Whether it is gone after boot: what takes its name then is another thing.
    boot: bool,
    name: String,
}

fn is_of_boot(piece: &Piece) -> bool {
    matches!(piece.role, SectionRole::BootCode(_) | SectionRole::BootData)
}

/// Named pieces that can be the same thing.
fn groups(pieces: &Pieces<'_>) -> BTreeMap<Key, Vec<PieceIndex>> {
    let mut groups: BTreeMap<Key, Vec<PieceIndex>> = BTreeMap::new();
    for (index, piece) in pieces.iter() {
        let function = match piece.kind {
            PieceKind::Function => true,
            PieceKind::Datum if !is_fresh(piece) => false,
            _ => continue,
        };
        let name = if piece.global || function { &piece.name } else { without_number(&piece.name) };
        let key = Key { function, numbered: *name != piece.name, boot: is_of_boot(piece), name: name.to_owned() };
        groups.entry(key).or_default().push(index);
    }
    groups
}

/// Pairs what has several names, of which the first one comes or goes.
fn pair_aliases(this: &mut Correlation, original: &Pieces<'_>, patched: &Pieces<'_>) {
    let taken = this.originals();
    let mut names: HashMap<(PieceKind, bool, &str), Vec<PieceIndex>> = HashMap::new();
    for (old, piece) in original.iter().filter(|(old, piece)| !taken.contains(old) && !is_fresh(piece)) {
        for &symbol in &piece.symbols {
            let name = original.object.symbol(symbol).name.as_str();
            names.entry((piece.kind, is_of_boot(piece), name)).or_default().push(old);
        }
    }
    let mut found = BTreeMap::new();
    for (new, piece) in patched.iter().filter(|(new, piece)| !this.pairs.contains_key(new) && !is_fresh(piece)) {
        let name = |symbol| patched.object.symbol(symbol).name.as_str();
        let same = |symbol| names.get(&(piece.kind, is_of_boot(piece), name(symbol)));
        let numbered = without_number(&piece.name) != piece.name && piece.kind == PieceKind::Datum;
        if let Some([old]) = piece.symbols.iter().find_map(|&symbol| same(symbol)).map(Vec::as_slice)
            && !numbered
        {
            found.entry(*old).or_insert_with(Vec::new).push(new);
        }
    }
    for (old, new) in found {
        if let [new] = new.as_slice() {
            this.pairs.insert(*new, old);
        }
    }
}

/// Pairs BTF ids, whose names have the line in them. What an id means is its kind and name (tools/bpf/resolve_btfids/main.c), but
/// code counts from the beginning of its list: so only where all lists are the same, entry for entry.
fn pair_btf_ids(this: &mut Correlation, original: &Pieces<'_>, patched: &Pieces<'_>) {
    fn listed<'p>(pieces: &'p Pieces<'_>) -> Vec<(PieceIndex, (&'p Range<u64>, &'p str))> {
        let is_id = |piece: &Piece| pieces.object.section(piece.section).name == ".BTF_ids";
        let entry = |(index, piece): (PieceIndex, &'p Piece)| (index, (&piece.range, without_btf_number(&piece.name)));
        pieces.iter().filter(|(_, piece)| is_id(piece)).map(entry).collect()
    }
    let (old, new) = (listed(original), listed(patched));
    if old.len() == new.len() && old.iter().zip(&new).all(|((_, old), (_, new))| old == new) {
        for ((old, _), (new, _)) in old.into_iter().zip(new) {
            if patched.piece(new).kind == PieceKind::Datum {
                this.pairs.entry(new).or_insert(old);
            }
        }
    }
}

/// What functions of the same name, whose code has the same shape, refer to at the same places.
fn evidence(
    original: &Pieces<'_>,
    patched: &Pieces<'_>,
    known: &Correlation,
) -> HashMap<PieceIndex, HashSet<PieceIndex>> {
    let mut evidence: HashMap<PieceIndex, HashSet<PieceIndex>> = HashMap::new();
    for (new, piece) in patched.iter().filter(|(_, piece)| piece.kind == PieceKind::Function) {
        let Some(old) = known.original(new) else { continue };
        let (old_relocs, new_relocs) = (original.relocs(old), patched.relocs(new));
        let (old_start, new_start) = (original.piece(old).range.start, piece.range.start);
        let same_shape = original.piece(old).size() == piece.size()
            && old_relocs.len() == new_relocs.len()
            && old_relocs
                .iter()
                .zip(new_relocs)
                .all(|(a, b)| same_kind(a.kind, b.kind) && a.offset - old_start == b.offset - new_start);
        if !same_shape {
            continue;
        }
        for (a, b) in old_relocs.iter().zip(new_relocs) {
            if let (Target::Piece(old_target, x), Target::Piece(new_target, y)) =
                (original.target(a), patched.target(b))
                && x == y
            {
                evidence.entry(new_target).or_default().insert(old_target);
            }
        }
    }
    evidence
}

type Users<'p> = HashMap<PieceIndex, BTreeSet<&'p str>>;

/// The functions of the source, and the data, that refer to each piece.
fn users<'p>(pieces: &'p Pieces<'_>) -> Users<'p> {
    let mut users = Users::new();
    for (index, piece) in pieces.iter().filter(|(_, piece)| piece.kind != PieceKind::Anonymous) {
        for reloc in pieces.relocs(index) {
            if let Target::Piece(target, _) = pieces.target(reloc)
                && target != index
            {
                users.entry(target).or_default().insert(source_name(&piece.name));
            }
        }
    }
    users
}

/// Pairs the members of a group, first by what code of the same shape refers to, then by who refers to them.
fn settle(
    this: &mut Correlation,
    evidence: &HashMap<PieceIndex, HashSet<PieceIndex>>,
    (old_users, new_users): &(Users<'_>, Users<'_>),
    (old_members, new_members): (&[PieceIndex], &[PieceIndex]),
) {
    let seen = |old: PieceIndex, new: PieceIndex| evidence.get(&new).is_some_and(|seen| seen.contains(&old));
    let shared = |old: PieceIndex, new: PieceIndex| match (old_users.get(&old), new_users.get(&new)) {
        (None, None) => true,
        (Some(old), Some(new)) => !old.is_disjoint(new),
        _ => false,
    };
    let (mut old_left, mut new_left) = (old_members.to_vec(), new_members.to_vec());
    let by: [&dyn Fn(PieceIndex, PieceIndex) -> bool; 2] = [&seen, &shared];
    for fits in by {
        let mut pairs = Vec::new();
        for &new in &new_left {
            let mine: Vec<PieceIndex> = old_left.iter().copied().filter(|&old| fits(old, new)).collect();
            if let [old] = mine.as_slice()
                && new_left.iter().filter(|&&other| fits(*old, other)).count() == 1
            {
                pairs.push((*old, new));
            }
        }
        old_left.retain(|old| pairs.iter().all(|(paired, _)| paired != old));
        new_left.retain(|new| pairs.iter().all(|(_, paired)| paired != new));
        this.pairs.extend(pairs.into_iter().map(|(old, new)| (new, old)));
    }
}

/// A datum without original may still be one that the original object calls the same: it went to another function, or
/// to the file. Where it has state, nobody may guess.
fn doubt_what_moved(this: &mut Correlation, original: &Pieces<'_>, patched: &Pieces<'_>) {
    let taken = this.originals();
    let state = |piece: &Piece| {
        piece.kind == PieceKind::Datum && piece.role != SectionRole::ReadOnly && !is_fresh(piece) && !is_of_boot(piece)
    };
    let gone: HashSet<&str> = original
        .iter()
        .filter(|(old, piece)| state(piece) && !taken.contains(old))
        .map(|(_, piece)| without_number(&piece.name))
        .collect();
    for (new, piece) in patched.iter() {
        if state(piece) && !this.pairs.contains_key(&new) && gone.contains(without_number(&piece.name)) {
            this.ambiguous.insert(new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_compilers() {
        assert_eq!(without_number("state.12"), "state");
        assert_eq!(without_number("foo.isra.0"), "foo.isra");
        assert_eq!(without_number("foo.cold"), "foo.cold");
        assert_eq!(without_number(".12"), ".12");
        assert_eq!(without_counter("__UNIQUE_ID_ddebug254.3"), "__UNIQUE_ID_ddebug");
        assert_eq!(without_counter("state254.3"), "state254");
        assert_eq!(source_name("foo.isra.0.cold"), "foo");
        assert_eq!(without_btf_number("__BTF_ID__struct__task_struct__91234"), "__BTF_ID__struct__task_struct");
        assert_eq!(without_btf_number("__BTF_ID__set8__hooks"), "__BTF_ID__set8__hooks");
        assert_eq!(without_btf_number("other__12"), "other__12");
    }

    #[test]
    fn only_static_locals_without_state_are_fresh() {
        assert!(is_fresh_name("__func__.7", true) && is_fresh_name("__UNIQUE_ID_ddebug123.4", false));
        assert!(!is_fresh_name("state.3", false) && !is_fresh_name("descriptor", false));
        assert!(is_fresh_name("__compound_literal.1", true) && !is_fresh_name("__compound_literal.1", false));
    }
}
