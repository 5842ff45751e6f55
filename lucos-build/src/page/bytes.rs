//! A type, byte by byte: what each row of eight bytes holds.
//!
//! Comes in: a type, and what became of each of its members. Decided: the runs of bits that members take in each row, the holes
//! where nothing is, lanes for what lies over each other (members of unions), and which rows are worth showing. Goes out:
//! [`Picture`]. Sizes come from debug information and may be anything: what cannot be drawn is not.

use diff_analyzer::dwarf_layout::{Member, TypeKind, TypeLayout};
use std::ops::Range;

/// Bits of a row.
pub(super) const ROW: u64 = 64;
/// Types with more bytes are not drawn.
const LARGEST: u64 = 1 << 20;
/// Types with no more rows are shown whole.
const SMALL: usize = 32;
/// Rows that are the same are shown once when there are more of them.
const REPEATS: usize = 3;

/// What became of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is where it was.
    Same,
    /// It goes elsewhere, by this many bits.
    Moved(i128),
    /// It has another size, and starts where it did.
    Resized,
    /// It has another type of the same size.
    Retyped,
    /// It has another name.
    Renamed,
    /// It is new.
    Added,
    /// It is gone.
    Removed,
}

/// A member that is not itself an anonymous struct or union.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) path: String,
    pub(super) type_text: String,
    /// First bit and the one behind the last; empty for a flexible array.
    pub(super) bits: Range<u64>,
    pub(super) bit_field: bool,
    /// Which of the alternatives that lie over each other it is, from 0.
    lane: usize,
}

/// A part of a member that lies in one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    /// Which member.
    pub(super) field: usize,
    /// Bits of the row.
    pub(super) bits: Range<u64>,
    /// Lane of the row, from 0.
    pub(super) lane: usize,
    /// Whether the member begins here.
    pub(super) first: bool,
    /// Whether it ends here.
    pub(super) last: bool,
}

/// Eight bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// Offset of the first byte.
    pub(super) at: u64,
    /// Bits that belong to the type: fewer in the last row.
    pub(super) bits: u64,
    /// Members.
    pub(super) runs: Vec<Run>,
    /// Bits in which no member is.
    pub(super) holes: Vec<Range<u64>>,
    /// Members that lie over each other.
    pub(super) lanes: usize,
    /// Whether something changes here.
    changes: bool,
}

/// What is drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    /// A row.
    Row(Row),
    /// So many more rows like the one before.
    Repeated(usize),
    /// Rows in which nothing changes.
    Folded(Vec<Row>),
}

/// A type, drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Picture {
    /// Members in order of declaration.
    pub(super) fields: Vec<Field>,
    /// What is drawn; nothing when the type is too large.
    pub(super) lines: Vec<Line>,
}

/// Members of a type, without the anonymous ones around them.
pub(super) fn fields(layout: &TypeLayout) -> Vec<Field> {
    let mut fields = Vec::new();
    place(&layout.members, layout.kind == TypeKind::Union, "", 0, &mut fields);
    fields
}

/// Puts members into lanes from `base` on; how many they take.
fn place(members: &[Member], over_each_other: bool, prefix: &str, base: usize, fields: &mut Vec<Field>) -> usize {
    let mut taken = 0;
    for member in members {
        let lane = if over_each_other { base + taken } else { base };
        let lanes = if member.members.is_empty() {
            if !member.name.is_empty() || !member.embeds.is_empty() {
                let name = if member.name.is_empty() { &member.type_text } else { &member.name };
                let bits = member.bit_offset..member.bit_offset.saturating_add(member.bit_size);
                fields.push(Field {
                    path: format!("{prefix}{name}"),
                    type_text: member.type_text.clone(),
                    bits,
                    bit_field: member.bit_field,
                    lane,
                });
            }
            1
        } else {
            let inner = if member.name.is_empty() { prefix.to_owned() } else { format!("{prefix}{}.", member.name) };
            place(&member.members, member.type_text.starts_with("union"), &inner, lane, fields)
        };
        taken = if over_each_other { taken + lanes } else { taken.max(lanes) };
    }
    taken.max(1)
}

/// Draws a type; `fate` says what became of each of its members, `also` which bits are worth a look although no member of
/// this version is there: where the other version has one.
pub(super) fn draw(layout: &TypeLayout, fate: impl Fn(&Field) -> Fate, also: &[Range<u64>]) -> Picture {
    let fields = fields(layout);
    if layout.size == 0 || layout.size > LARGEST {
        return Picture { fields, lines: Vec::new() };
    }
    let turns = turns(&fields, &fate);
    let size = layout.size * 8;
    let mut order: Vec<usize> = (0..fields.len()).filter(|&index| !fields[index].bits.is_empty()).collect();
    order.sort_by_key(|&index| (fields[index].bits.start, fields[index].lane));
    let mut rows = Vec::new();
    // Members that may reach into the row; the next one that begins.
    let (mut open, mut next): (Vec<usize>, usize) = (Vec::new(), 0);
    for start in (0..size).step_by(ROW as usize) {
        let end = start.saturating_add(ROW).min(size);
        while next < order.len() && fields[order[next]].bits.start < end {
            open.push(order[next]);
            next += 1;
        }
        open.retain(|&index| fields[index].bits.end > start);
        let mut row = row(&fields, &open, start..end, &turns);
        row.changes |= also.iter().any(|bits| bits.start < end && bits.end > start);
        rows.push(row);
    }
    let lines = fold(rows);
    Picture { fields, lines }
}

/// Where something changes at a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Nowhere,
    /// Where it begins: it is the first of several that move together.
    Begin,
    /// Where it begins and where it ends: it is different.
    Both,
}

fn turns(fields: &[Field], fate: impl Fn(&Field) -> Fate) -> Vec<Turn> {
    let mut order: Vec<usize> = (0..fields.len()).collect();
    order.sort_by_key(|&index| (fields[index].bits.start, fields[index].lane));
    let mut turns = vec![Turn::Nowhere; fields.len()];
    let mut distance = 0;
    for index in order {
        let now = match fate(&fields[index]) {
            Fate::Same => 0,
            Fate::Moved(distance) => distance,
            _ => {
                turns[index] = Turn::Both;
                continue;
            }
        };
        turns[index] = if now == distance { Turn::Nowhere } else { Turn::Begin };
        distance = now;
    }
    turns
}

fn row(fields: &[Field], open: &[usize], bits: Range<u64>, turns: &[Turn]) -> Row {
    let mut lanes: Vec<usize> = open.iter().map(|&index| fields[index].lane).collect();
    lanes.sort_unstable();
    lanes.dedup();
    let mut runs = Vec::new();
    for &index in open {
        let field = &fields[index];
        let (from, to) = (field.bits.start.max(bits.start), field.bits.end.min(bits.end));
        let Ok(lane) = lanes.binary_search(&field.lane) else { continue };
        if from < to {
            let (first, last) = (from == field.bits.start, to == field.bits.end);
            runs.push(Run { field: index, bits: from - bits.start..to - bits.start, lane, first, last });
        }
    }
    let mut holes = Vec::new();
    let mut filled = 0;
    for run in &runs {
        if run.bits.start > filled {
            holes.push(filled..run.bits.start);
        }
        filled = filled.max(run.bits.end);
    }
    let length = bits.end - bits.start;
    if filled < length {
        holes.push(filled..length);
    }
    let changes = runs.iter().any(|run| match turns[run.field] {
        Turn::Nowhere => false,
        Turn::Begin => run.first,
        Turn::Both => run.first || run.last,
    });
    Row { at: bits.start / 8, bits: length, runs, holes, lanes: lanes.len().max(1), changes }
}

/// Whether two rows hold the same parts of the same members.
fn alike(one: &Row, other: &Row) -> bool {
    let parts = |row: &Row| row.runs.iter().map(|run| (run.field, run.bits.clone(), run.lane)).collect::<Vec<_>>();
    one.holes == other.holes && one.bits == other.bits && parts(one) == parts(other)
}

/// Leaves rows out that say nothing new.
fn fold(rows: Vec<Row>) -> Vec<Line> {
    let shown: Vec<bool> = (0..rows.len())
        .map(|index| {
            let around = index.saturating_sub(1)..(index + 2).min(rows.len());
            rows.len() <= SMALL || rows[around].iter().any(|row| row.changes)
        })
        .collect();
    let mut lines: Vec<Line> = Vec::new();
    let mut group: Vec<Row> = Vec::new();
    for (row, shown) in rows.into_iter().zip(shown) {
        if !shown {
            unfold(&mut lines, &mut group);
            match lines.last_mut() {
                Some(Line::Folded(folded)) => folded.push(row),
                _ => lines.push(Line::Folded(vec![row])),
            }
            continue;
        }
        if group.first().is_some_and(|first| !alike(first, &row)) {
            unfold(&mut lines, &mut group);
        }
        group.push(row);
    }
    unfold(&mut lines, &mut group);
    lines
}

/// Rows that are alike: the first, how many more, the last.
fn unfold(lines: &mut Vec<Line>, group: &mut Vec<Row>) {
    let count = group.len();
    if count <= REPEATS {
        lines.extend(group.drain(..).map(Line::Row));
        return;
    }
    let mut rows = group.drain(..);
    lines.extend(rows.next().map(Line::Row));
    lines.push(Line::Repeated(count - 2));
    lines.extend(rows.next_back().map(Line::Row));
}

#[cfg(test)]
mod tests {
    use super::*;
    use diff_analyzer::dwarf_layout::Shape;

    fn member(name: &str, bit_offset: u64, bit_size: u64) -> Member {
        Member {
            name: name.to_owned(),
            bit_offset,
            bit_size,
            bit_field: !bit_size.is_multiple_of(8),
            type_text: "int".to_owned(),
            declaration: format!("int {name}"),
            shape: Shape::Signed(4),
            embeds: Vec::new(),
            members: Vec::new(),
            place: None,
        }
    }

    fn layout(kind: TypeKind, size: u64, members: Vec<Member>) -> TypeLayout {
        TypeLayout {
            name: "struct t".to_owned(),
            kind,
            size,
            align: 8,
            members,
            enumerators: Vec::new(),
            target: None,
            embeds: Vec::new(),
            place: None,
        }
    }

    fn rows<'p>(picture: &'p Picture) -> Vec<&'p Row> {
        let row = |line: &'p Line| if let Line::Row(row) = line { Some(row) } else { None };
        picture.lines.iter().filter_map(row).collect()
    }

    #[test]
    fn holes_and_bit_fields_have_their_bits() {
        let members = vec![member("a", 0, 8), member("b", 32, 32), member("c", 64, 3), member("d", 67, 5)];
        let picture = draw(&layout(TypeKind::Struct, 12, members), |_| Fate::Same, &[]);
        let rows = rows(&picture);
        let hole = |row: &Row| row.holes.iter().map(|hole| (hole.start, hole.end)).collect::<Vec<_>>();
        assert_eq!(hole(rows[0]), [(8, 32)]);
        assert_eq!((rows[1].bits, hole(rows[1])), (32, vec![(8, 32)]));
        assert_eq!(rows[1].runs.iter().map(|run| run.bits.clone()).collect::<Vec<_>>(), [0..3, 3..8]);
        assert!(picture.fields[2].bit_field && rows.iter().all(|row| row.lanes == 1));
    }

    #[test]
    fn alternatives_of_a_union_have_lanes() {
        let inner = Member {
            type_text: "struct { ... }".to_owned(),
            members: vec![member("x", 0, 32), member("y", 32, 32)],
            ..member("", 0, 64)
        };
        let both = Member {
            type_text: "union { ... }".to_owned(),
            members: vec![member("whole", 0, 64), inner],
            ..member("u", 0, 64)
        };
        let picture = draw(&layout(TypeKind::Struct, 16, vec![both, member("z", 64, 64)]), |_| Fate::Same, &[]);
        let paths: Vec<&str> = picture.fields.iter().map(|field| field.path.as_str()).collect();
        assert_eq!(paths, ["u.whole", "u.x", "u.y", "z"]);
        let rows = rows(&picture);
        assert_eq!(rows[0].runs.iter().map(|run| run.lane).collect::<Vec<_>>(), [0, 1, 1]);
        assert_eq!((rows[0].lanes, rows[1].lanes), (2, 1));
        assert!(rows[0].holes.is_empty());
    }

    #[test]
    fn a_member_reaches_over_rows_and_repeats_are_left_out() {
        let picture =
            draw(&layout(TypeKind::Struct, 72, vec![member("a", 0, 32), member("big", 32, 544)]), |_| Fate::Same, &[]);
        assert_eq!(picture.lines.len(), 4);
        assert!(matches!(picture.lines[2], Line::Repeated(6)), "{:?}", picture.lines);
        let rows = rows(&picture);
        assert!(rows[0].runs[1].first && !rows[0].runs[1].last);
        assert!(rows.last().is_some_and(|row| row.runs[0].last && row.at == 64));
    }

    #[test]
    fn what_moves_together_is_shown_where_it_begins() {
        let members: Vec<Member> = (0..64).map(|index| member(&format!("m{index}"), index * 64, 64)).collect();
        let fate = |field: &Field| match field.bits.start / 64 {
            0..32 => Fate::Same,
            32 => Fate::Added,
            _ => Fate::Moved(64),
        };
        let picture = draw(&layout(TypeKind::Struct, 512, members), fate, &[]);
        let shown: Vec<u64> = rows(&picture).iter().map(|row| row.at / 8).collect();
        assert_eq!(shown, [31, 32, 33, 34]);
        let folded = picture.lines.iter().map(|line| if let Line::Folded(rows) = line { rows.len() } else { 0 });
        assert_eq!(folded.collect::<Vec<_>>(), [31, 0, 0, 0, 0, 29]);
    }

    #[test]
    fn sizes_that_cannot_be_are_not_drawn() {
        let huge = vec![member("a", u64::MAX - 8, u64::MAX), member("b", 0, u64::MAX)];
        assert!(draw(&layout(TypeKind::Struct, u64::MAX, huge.clone()), |_| Fate::Same, &[]).lines.is_empty());
        let picture = draw(&layout(TypeKind::Struct, 16, huge), |_| Fate::Same, &[]);
        assert!(rows(&picture).iter().all(|row| row.runs.iter().all(|run| run.bits.end <= row.bits)));
        assert!(draw(&layout(TypeKind::Union, 0, Vec::new()), |_| Fate::Same, &[]).lines.is_empty());
    }
}
