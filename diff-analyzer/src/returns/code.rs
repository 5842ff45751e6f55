//! A function as a graph of instructions.
//!
//! Comes in: a function of an object. Decided: which instructions it has, those of its unlikely part included, and which follow which: by
//! jumps, by static keys, by the exception table. What does nothing is passed over. Goes out: a [`Graph`].

use super::Why;
use crate::object::Reloc;
use crate::object_diff::blank;
use crate::pieces::{Entry, PieceIndex, Pieces, Target, bias};
use crate::special::Table;
use iced_x86::{Code, ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};
use object::elf;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// Instructions and their order.
pub(super) struct Graph {
    /// All instructions, by part and offset. Some may never run.
    pub nodes: Vec<Node>,
    /// The first one.
    pub entry: usize,
    /// Who comes before each.
    pub before: Vec<Vec<usize>>,
    /// Those that may run, each behind one that leads to it.
    pub reached: Vec<usize>,
    /// Whether functions of this unit, too, are called by the convention: compilers that know what a function changes keep values
    /// in the registers that it leaves alone, unless code is to be profiled (`-fipa-ra` in GCC's manual).
    pub is_profiled: bool,
}

/// An instruction.
pub(super) struct Node {
    /// 0 in the function itself, more in its unlikely parts.
    pub part: usize,
    /// Byte offset in the part.
    pub at: u64,
    /// Offset of what stands behind it.
    pub next: u64,
    /// The instruction.
    pub instruction: Instruction,
    /// What it is for the flow of control.
    pub kind: Kind,
    /// What its fields refer to, and what stands for it where boot chooses.
    pub fields: Vec<Field>,
    /// What boot may put in its place, as bytes that are compared.
    pub site: Option<Vec<u8>>,
    /// The same as instructions, at the beginning of such a place.
    pub replacements: Vec<Instruction>,
    /// What else the exception table says of it, as bytes that are compared.
    pub handler: Vec<u8>,
    /// What runs next: behind it, at its target, where the exception table leads. Of a conditional jump: if the
    /// condition that [`positive`] gives does not hold, if it does.
    pub steps: [Option<usize>; 3],
}

/// What an instruction is for the flow of control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// It goes on behind it.
    Plain,
    /// It goes on behind it or elsewhere.
    Branch,
    /// Calls a function of that name, or one that is not known; whether it is one of this unit.
    Call(Option<String>, bool),
    /// Returns.
    Return,
    /// Goes on in another function, for good.
    Leave,
    /// Is never to be run.
    Stop,
    /// It does nothing, or only leads elsewhere in the function.
    Nothing,
}

/// What a field refers to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    /// Which field.
    pub of: FieldOf,
    /// What it refers to.
    pub target: Target,
    /// How far behind a symbol of another unit.
    pub addend: i64,
}

/// Which field of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FieldOf {
    Displacement,
    Immediate,
    /// The key of a static branch.
    Key,
    /// A field of what boot may put there.
    Replacement(u64),
}

/// Where an instruction leads to.
#[derive(Clone, Copy)]
enum Way {
    None,
    /// Part and offset.
    Inside(usize, u64),
    Outside,
}

impl Graph {
    /// What runs behind an instruction.
    pub(super) fn after(&self, node: usize) -> impl Iterator<Item = usize> {
        self.nodes[node].steps.iter().flatten().copied()
    }
}

/// The condition of a jump, or its opposite: one of each two, so that it does not matter which way a compiler lets run on.
pub(super) fn positive(node: &Node) -> Option<ConditionCode> {
    let is_key = node.fields.iter().any(|field| field.of == FieldOf::Key);
    Some(match node.instruction.condition_code() {
        _ if node.kind != Kind::Branch || is_key => return None,
        ConditionCode::None => return None,
        ConditionCode::no => ConditionCode::o,
        ConditionCode::ae => ConditionCode::b,
        ConditionCode::ne => ConditionCode::e,
        ConditionCode::a => ConditionCode::be,
        ConditionCode::ns => ConditionCode::s,
        ConditionCode::np => ConditionCode::p,
        ConditionCode::ge => ConditionCode::l,
        ConditionCode::g => ConditionCode::le,
        condition => condition,
    })
}

/// Instructions of the largest function that is looked at.
const INSTRUCTIONS: usize = 4000;

/// Reads a function.
///
/// # Errors
/// [`Why`] when its flow of control is not known.
pub(super) fn read(pieces: &Pieces<'_>, function: PieceIndex) -> Result<Graph, Why> {
    let mut reader =
        Reader { pieces, parts: vec![function], nodes: Vec::new(), ways: Vec::new(), places: HashMap::new() };
    let mut part = 0;
    while part < reader.parts.len() {
        reader.part(part)?;
        part += 1;
    }
    reader.connect()
}

struct Reader<'a, 'o> {
    pieces: &'a Pieces<'o>,
    parts: Vec<PieceIndex>,
    nodes: Vec<Node>,
    /// Targets of jumps and of the exception table.
    ways: Vec<[Way; 2]>,
    places: HashMap<(usize, u64), usize>,
}

/// What special tables say of a part.
#[derive(Default)]
struct Tables {
    labels: BTreeMap<u64, (Target, Field)>,
    fixups: BTreeMap<u64, (Target, Vec<u8>)>,
    sites: Vec<Site>,
    traced: Vec<u64>,
}

/// A place where boot may put something else.
struct Site {
    range: Range<u64>,
    says: Vec<u8>,
    fields: Vec<Field>,
    replacements: Vec<Instruction>,
}

impl Reader<'_, '_> {
    fn part(&mut self, part: usize) -> Result<(), Why> {
        let piece = self.parts[part];
        let (code, start) = (self.pieces.bytes(piece), self.pieces.piece(piece).range.start);
        let tables = self.tables(piece)?;
        let relocs = self.pieces.relocs(piece);
        let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
        while decoder.can_decode() {
            let instruction = decoder.decode();
            let (at, next) = (instruction.ip(), instruction.next_ip());
            if instruction.is_invalid() {
                return Err(Why::NoCode(at));
            }
            let offsets = decoder.get_constant_offsets(&instruction);
            let mut fields = Vec::new();
            let first = relocs.partition_point(|reloc| reloc.offset < start + at);
            let own = relocs[first..].iter().take_while(|reloc| reloc.offset < start + next);
            for reloc in own.filter(|reloc| reloc.kind != elf::R_X86_64_NONE.0) {
                let within = reloc.offset - start - at;
                let of = if offsets.has_displacement() && within == offsets.displacement_offset() as u64 {
                    FieldOf::Displacement
                } else if offsets.has_immediate() && within == offsets.immediate_offset() as u64 {
                    FieldOf::Immediate
                } else {
                    return Err(Why::NoCode(at));
                };
                fields.push(self.field(of, reloc));
            }
            let sites = tables.sites.iter().filter(|site| site.range.contains(&at)).collect::<Vec<_>>();
            let (mut kind, mut target) = self.flow(part, &instruction, &fields)?;
            if let Some((label, key)) = tables.labels.get(&at) {
                (kind, target) = (Kind::Branch, self.way(*label).ok_or(Why::Jump(at))?);
                fields = vec![*key];
            }
            if tables.traced.contains(&at) {
                (kind, fields) = (Kind::Nothing, Vec::new());
            }
            if !sites.is_empty() {
                if !matches!(kind, Kind::Plain | Kind::Nothing | Kind::Call(..)) {
                    return Err(Why::Choice(at));
                }
                if kind == Kind::Nothing {
                    kind = Kind::Plain;
                }
                fields.extend(sites.iter().flat_map(|site| &site.fields));
            }
            let (fixup, handler) = match tables.fixups.get(&at) {
                Some((target, handler)) => (self.way(*target).ok_or(Why::Jump(at))?, handler.clone()),
                None => (Way::None, Vec::new()),
            };
            let begun = sites.iter().filter(|site| site.range.start == at);
            let replacements = begun.flat_map(|site| &site.replacements).copied().collect();
            let site = (!sites.is_empty()).then(|| sites.iter().flat_map(|site| site.says.clone()).collect());
            self.places.insert((part, at), self.nodes.len());
            self.ways.push([target, fixup]);
            let steps = [None; 3];
            self.nodes.push(Node { part, at, next, instruction, kind, fields, site, replacements, handler, steps });
        }
        Ok(())
    }

    fn field(&self, of: FieldOf, reloc: &Reloc) -> Field {
        Field { of, target: self.pieces.target(reloc), addend: reloc.addend.wrapping_add(bias(reloc)) }
    }

    /// What an instruction is, and where it jumps to.
    fn flow(&mut self, part: usize, instruction: &Instruction, fields: &[Field]) -> Result<(Kind, Way), Why> {
        let at = instruction.ip();
        let named = fields.iter().find(|field| field.of == FieldOf::Immediate).map(|field| field.target);
        let near = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64;
        let to = match named {
            Some(target) => self.way(target).unwrap_or(Way::Outside),
            None => Way::Inside(part, instruction.near_branch64()),
        };
        Ok(match instruction.flow_control() {
            FlowControl::Next
                if matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Pause) =>
            {
                (Kind::Nothing, Way::None)
            }
            FlowControl::Next | FlowControl::Exception => (Kind::Plain, Way::None),
            FlowControl::UnconditionalBranch if near => match (to, named.map(|target| self.name(target))) {
                (Way::Inside(..), _) => (Kind::Nothing, to),
                // `ret` of a kernel whose returns boot may change (arch/x86/include/asm/nospec-branch.h).
                (_, Some(name)) if name == "__x86_return_thunk" => (Kind::Return, Way::None),
                _ => (Kind::Leave, Way::None),
            },
            FlowControl::ConditionalBranch => match to {
                Way::Inside(..) => (Kind::Branch, to),
                _ => return Err(Why::Jump(at)),
            },
            FlowControl::Call => {
                let is_here = !matches!(named, Some(Target::External(_)));
                (Kind::Call(named.map(|target| self.name(target)), is_here), Way::None)
            }
            FlowControl::IndirectCall => (Kind::Call(None, false), Way::None),
            FlowControl::Return => (Kind::Return, Way::None),
            // A trap that nobody comes back from stands behind jumps and returns.
            FlowControl::Interrupt if instruction.code() == Code::Int3 => (Kind::Stop, Way::None),
            _ => return Err(Why::Jump(at)),
        })
    }

    fn name(&self, target: Target) -> String {
        match target {
            Target::External(symbol) => self.pieces.object.symbol(symbol).name.clone(),
            Target::Piece(piece, _) => self.pieces.piece(piece).name.clone(),
        }
    }

    /// A place of this function. Its unlikely parts become known by being jumped to.
    fn way(&mut self, target: Target) -> Option<Way> {
        let Target::Piece(piece, offset) = target else { return None };
        let offset = u64::try_from(offset).ok()?;
        let known = self.parts.iter().position(|part| *part == piece);
        let part = known.or_else(|| {
            let unlikely = format!("{}.cold", self.pieces.piece(self.parts[0]).name);
            crate::correlate::without_number(&self.pieces.piece(piece).name).eq(&unlikely).then(|| {
                self.parts.push(piece);
                self.parts.len() - 1
            })
        })?;
        Some(Way::Inside(part, offset))
    }

    fn tables(&self, piece: PieceIndex) -> Result<Tables, Why> {
        let mut tables = Tables::default();
        for entry in self.pieces.entries(piece) {
            let place = entry.place;
            let relocs = self.pieces.relocs_in(entry.section, entry.offset..entry.offset + entry.size);
            let target =
                |index: usize| relocs.get(index).map(|reloc| self.pieces.target(reloc)).ok_or(Why::Jump(place));
            match entry.table {
                Table::JumpLabels => {
                    let key = relocs.get(2).map(|reloc| self.field(FieldOf::Key, reloc)).ok_or(Why::Jump(place))?;
                    tables.labels.insert(place, (target(1)?, key));
                }
                Table::Exceptions if relocs.len() == 2 => {
                    // struct exception_table_entry: two distances of 4 bytes, and what is to be done (arch/x86/include/asm/extable.h).
                    let data = &self.pieces.object.section(entry.section).data;
                    let handler = data.get(entry.offset as usize + 8..(entry.offset + entry.size) as usize);
                    tables.fixups.insert(place, (target(1)?, handler.unwrap_or_default().to_vec()));
                }
                Table::Exceptions => return Err(Why::Jump(place)),
                Table::Mcount => tables.traced.push(place),
                Table::Alternatives | Table::Paravirt | Table::ConstantPointers | Table::ConstantShifts => {
                    tables.sites.push(self.site(entry, relocs)?);
                }
                Table::Retpolines | Table::Returns | Table::StaticCalls | Table::SmpLocks | Table::Bugs => {}
            }
        }
        Ok(tables)
    }

    /// What boot may put into a place.
    fn site(&self, entry: &Entry, relocs: &[Reloc]) -> Result<Site, Why> {
        let missing = || Why::Choice(entry.place);
        let section = self.pieces.object.section(entry.section);
        let bytes =
            section.data.get(entry.offset as usize..(entry.offset + entry.size) as usize).ok_or_else(missing)?;
        let byte = |at: usize| bytes.get(at).copied().map(u64::from).ok_or_else(missing);
        let mut site =
            Site { range: 0..0, says: vec![entry.table as u8], fields: Vec::new(), replacements: Vec::new() };
        let len = match entry.table {
            // struct alt_instr: two distances of 4 bytes, what it depends on, and two lengths (arch/x86/include/asm/alternative.h).
            Table::Alternatives => {
                site.says.extend(bytes.get(8..).unwrap_or_default());
                self.replacement(entry.place, relocs.get(1), byte(bytes.len().wrapping_sub(1))?, &mut site)?;
                byte(bytes.len().wrapping_sub(2))?
            }
            // struct paravirt_patch_site: an address, a type and a length (arch/x86/include/asm/paravirt_types.h).
            Table::Paravirt => {
                site.says.extend(bytes.get(8..10).unwrap_or_default());
                byte(9)?
            }
            // The place is inside an instruction: behind a prefix and an opcode at most.
            _ => {
                site.says.extend(section.name.as_bytes());
                site.range = entry.place.saturating_sub(3)..entry.place;
                return Ok(site);
            }
        };
        site.range = entry.place..entry.place + len;
        Ok(site)
    }

    /// Replacement code: its bytes, fields blank, its instructions, and what they refer to.
    fn replacement(&self, place: u64, reloc: Option<&Reloc>, len: u64, site: &mut Site) -> Result<(), Why> {
        if len == 0 {
            return Ok(());
        }
        let target = reloc.map(|reloc| self.pieces.resolve(reloc.symbol, reloc.addend));
        let Some(Target::Piece(piece, offset)) = target else { return Err(Why::Choice(place)) };
        let piece = self.pieces.piece(piece);
        let start = piece.range.start + u64::try_from(offset).map_err(|_| Why::Choice(place))?;
        let data = &self.pieces.object.section(piece.section).data;
        let code = data.get(start as usize..(start + len) as usize).ok_or(Why::Choice(place))?;
        let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
        while decoder.can_decode() {
            let instruction = decoder.decode();
            if !matches!(instruction.flow_control(), FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall)
            {
                return Err(Why::Choice(place));
            }
            site.replacements.push(instruction);
        }
        let relocs = self.pieces.relocs_in(piece.section, start..start + len);
        let mut bytes = code.to_vec();
        blank(&mut bytes, relocs, start);
        site.says.extend(bytes);
        site.fields.extend(relocs.iter().map(|reloc| self.field(FieldOf::Replacement(reloc.offset - start), reloc)));
        Ok(())
    }

    /// Connects the instructions, past those that do nothing.
    fn connect(mut self) -> Result<Graph, Why> {
        let mut steps = Vec::new();
        for (node, [target, fixup]) in self.nodes.iter().zip(&self.ways) {
            let resolve = |way: &Way| match way {
                Way::Inside(part, at) if self.places.contains_key(&(*part, *at)) => Ok(self.something(*part, *at)),
                Way::Inside(..) => Err(Why::Jump(node.at)),
                _ => Ok(None),
            };
            let is_reversed = positive(node).is_some_and(|condition| condition != node.instruction.condition_code());
            steps.push(match node.kind {
                Kind::Nothing => [None; 3],
                Kind::Branch if is_reversed => {
                    [resolve(target)?, self.something(node.part, node.next), resolve(fixup)?]
                }
                Kind::Return | Kind::Leave | Kind::Stop => [None, None, resolve(fixup)?],
                // A call that nobody comes back from may be the last instruction.
                _ => [self.something(node.part, node.next), resolve(target)?, resolve(fixup)?],
            });
        }
        let entry = self.something(0, 0).ok_or(Why::NoCode(0))?;
        self.nodes.iter_mut().zip(steps).for_each(|(node, steps)| node.steps = steps);
        let (mut seen, mut reached) = (vec![false; self.nodes.len()], Vec::new());
        let mut before = vec![Vec::new(); self.nodes.len()];
        let mut open = vec![entry];
        while let Some(node) = open.pop() {
            if std::mem::replace(&mut seen[node], true) {
                continue;
            }
            reached.push(node);
            for next in self.nodes[node].steps.iter().rev().flatten() {
                before[*next].push(node);
                open.push(*next);
            }
        }
        before.iter_mut().for_each(|nodes| nodes.dedup());
        if reached.len() > INSTRUCTIONS {
            return Err(Why::Large);
        }
        let is_profiled = self.pieces.object.sections.iter().any(|section| section.name == Table::Mcount.section());
        Ok(Graph { nodes: self.nodes, entry, before, reached, is_profiled })
    }

    /// The first instruction from a place on that does something; none where the way ends, or goes round.
    fn something(&self, part: usize, at: u64) -> Option<usize> {
        let mut place = (part, at);
        for _ in 0..=self.nodes.len() {
            let index = *self.places.get(&place)?;
            let node = &self.nodes[index];
            place = match (&node.kind, self.ways[index][0]) {
                (Kind::Nothing, Way::Inside(part, at)) => (part, at),
                (Kind::Nothing, _) => (node.part, node.next),
                _ => return Some(index),
            };
        }
        None
    }
}
