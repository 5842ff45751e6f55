//! Proof that a compiled function is the one in the kernel image, and what the proof tells about symbols.
//!
//! Comes in: the original object in pieces, the kernel image. Decided, per function: whether it equals the function in
//! the image byte for byte outside relocated fields, with every field naming the same target. Goes out: [`Proof`]: the
//! proved functions with their addresses, the reason for each of the others, and *bindings*: where each local symbol of
//! the object lives, read from the image's own fields. Names are not trusted where a binding can be had.

use crate::symbol_db::AddressKind;
use crate::vmlinux::{ImageReloc, KernelImage};
use diff_analyzer::object::Reloc;
use diff_analyzer::object_diff::blank;
use diff_analyzer::pieces::{PieceIndex, PieceKind, Pieces, Target, bias, field_width, is_pc_relative};
use diff_analyzer::special::SectionRole;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Formatter, IntelFormatter};
use object::elf;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// Why a function is not the one in the image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The image has no function of that name in this unit.
    #[error("the image has no function `{name}` of this unit")]
    Missing {
        /// Its name.
        name: String,
    },
    /// Several functions of the image are equal to it.
    #[error("`{name}` equals {} functions of the image: {}", .candidates.len(), list(.candidates))]
    Ambiguous {
        /// Its name.
        name: String,
        /// Their addresses.
        candidates: Vec<u64>,
    },
    /// The sizes differ.
    #[error("`{name}` has {expected} bytes in the image, {found} as compiled")]
    Size {
        /// Its name.
        name: String,
        /// In the image.
        expected: u64,
        /// As compiled.
        found: u64,
    },
    /// The code differs.
    #[error("`{name}` differs at offset {offset:#x}: the image has `{expected}`, compiled is `{found}`")]
    Code {
        /// Its name.
        name: String,
        /// Offset of the first differing byte.
        offset: u64,
        /// Instruction in the image.
        expected: String,
        /// Instruction as compiled.
        found: String,
    },
    /// A field refers to something else.
    #[error("`{name}` differs at offset {offset:#x}: the image refers to {expected}, compiled refers to {found}")]
    Reference {
        /// Its name.
        name: String,
        /// Offset of the field.
        offset: u64,
        /// Target in the image.
        expected: String,
        /// Target as compiled.
        found: String,
    },
}

fn list(addresses: &[u64]) -> String {
    addresses.iter().map(|address| format!("{address:#x}")).collect::<Vec<_>>().join(", ")
}

/// What was proved about a unit.
#[derive(Debug, Default)]
pub struct Proof {
    /// Link addresses of the proved functions.
    pub functions: BTreeMap<PieceIndex, u64>,
    /// Why the others are not proved.
    pub mismatches: BTreeMap<PieceIndex, Mismatch>,
    /// Link addresses of data and functions that proved functions refer to.
    pub bindings: BTreeMap<PieceIndex, u64>,
    /// Relocated fields of proved functions by the function's address, in order: those that the linker would have kept, where
    /// the image has none of them (arch/x86/Makefile.postlink, since Linux 6.5).
    pub fields: BTreeMap<u64, Vec<ImageReloc>>,
}

impl Proof {
    /// Where a function or datum of the original object lives in the image.
    pub fn address(&self, piece: PieceIndex) -> Option<u64> {
        self.functions.get(&piece).or_else(|| self.bindings.get(&piece)).copied()
    }
}

/// Proves all functions of a unit. `unit_ranges` are the code ranges of the unit in the image (DWARF), empty if unknown.
pub fn prove(image: &KernelImage, original: &Pieces<'_>, unit_ranges: &[Range<u64>]) -> Proof {
    let mut proof = Proof::default();
    let mut contradicted = Vec::new();
    for (index, piece) in original.iter().filter(|(_, piece)| piece.kind == PieceKind::Function) {
        if !piece.role.is_code() {
            continue;
        }
        match find(image, original, index, unit_ranges) {
            Ok(Equal { address, bindings, fields }) => {
                proof.functions.insert(index, address);
                if !image.has_relocs() {
                    proof.fields.insert(address, fields);
                }
                for (target, address) in bindings {
                    match proof.bindings.insert(target, address) {
                        Some(before) if before != address => contradicted.push(target),
                        _ => {}
                    }
                }
            }
            Err(mismatch) => {
                proof.mismatches.insert(index, mismatch);
            }
        }
    }
    // A datum that two functions find at two places is none of which we know where it is.
    for target in contradicted {
        proof.bindings.remove(&target);
    }
    proof
}

type Bindings = HashMap<PieceIndex, u64>;

/// A function of the image that equals a compiled one.
struct Equal {
    address: u64,
    bindings: Bindings,
    fields: Vec<ImageReloc>,
}

fn find(
    image: &KernelImage,
    original: &Pieces<'_>,
    index: PieceIndex,
    unit_ranges: &[Range<u64>],
) -> Result<Equal, Mismatch> {
    let piece = original.piece(index);
    let in_unit = |address: u64| unit_ranges.is_empty() || unit_ranges.iter().any(|range| range.contains(&address));
    let mut candidates: Vec<_> =
        image.symbols().lookup(&piece.name).filter(|symbol| symbol.size > 0 && in_unit(symbol.address)).collect();
    candidates.dedup_by_key(|symbol| symbol.address);
    let mut first_mismatch = None;
    let mut matches = Vec::new();
    for symbol in candidates {
        match equal(image, original, index, symbol.address, symbol.size) {
            Ok(found) => matches.push(found),
            Err(mismatch) => {
                first_mismatch.get_or_insert(mismatch);
            }
        }
    }
    if matches.len() > 1 {
        let candidates = matches.iter().map(|found| found.address).collect();
        return Err(Mismatch::Ambiguous { name: piece.name.clone(), candidates });
    }
    matches.pop().ok_or_else(|| first_mismatch.unwrap_or(Mismatch::Missing { name: piece.name.clone() }))
}

fn equal(
    image: &KernelImage,
    original: &Pieces<'_>,
    index: PieceIndex,
    address: u64,
    size: u64,
) -> Result<Equal, Mismatch> {
    let piece = original.piece(index);
    let name = || piece.name.clone();
    if size != piece.size() {
        return Err(Mismatch::Size { name: name(), expected: size, found: piece.size() });
    }
    let compiled = original.bytes(index);
    let Some(live) = image.bytes(address, compiled.len()) else { return Err(Mismatch::Missing { name: name() }) };
    let relocs = original.relocs(index);
    let in_field = |at: u64| {
        relocs.iter().any(|reloc| {
            (reloc.offset - piece.range.start..reloc.offset - piece.range.start + field_width(reloc.kind)).contains(&at)
        })
    };
    if let Some((at, _)) = (0u64..).zip(compiled.iter().zip(live)).find(|(at, (a, b))| a != b && !in_field(*at)) {
        let (expected, found) = (instruction_at(live, address, at), instruction_at(compiled, address, at));
        return Err(Mismatch::Code { name: name(), offset: at, expected, found });
    }
    let kept = image.relocs(address, size);
    let (mut bindings, mut fields) = (Bindings::new(), Vec::new());
    let mut named = 0;
    for reloc in relocs {
        let offset = reloc.offset - piece.range.start;
        let field = address + offset;
        let kept = kept.binary_search_by_key(&field, |kept| kept.address).ok().map(|at| kept[at]);
        named += usize::from(kept.is_some());
        let target = kept.map(|kept| kept.target).or_else(|| implied_target(image, (live, address), reloc, offset));
        let reference = |expected: String| {
            let found = describe(original, reloc);
            let found = if found == expected { format!("{found} with other contents") } else { found };
            Mismatch::Reference { name: name(), offset, expected, found }
        };
        let Some(target) = target else { return Err(reference("a fixed value".to_owned())) };
        if kept.is_some_and(|kept| !same_field(kept.kind, reloc.kind)) {
            return Err(reference(format!("{target:#x} by a field of another kind")));
        }
        let Some(target_kind) = bind(image, original, (index, address), reloc, target, &mut bindings) else {
            return Err(reference(describe_address(image, target.wrapping_add_signed(bias(reloc)))));
        };
        let symbol = target.wrapping_sub(reloc.addend as u64);
        fields.push(ImageReloc { address: field, kind: reloc.kind, target, symbol, target_kind });
    }
    if named != kept.len() {
        let extra = kept
            .iter()
            .find(|kept| !relocs.iter().any(|reloc| address + reloc.offset - piece.range.start == kept.address));
        let (offset, expected) =
            extra.map_or((0, String::new()), |extra| (extra.address - address, describe_address(image, extra.target)));
        return Err(Mismatch::Reference { name: name(), offset, expected, found: "a fixed value".to_owned() });
    }
    Ok(Equal { address, bindings, fields })
}

/// S + A by what a field of the function at `address` holds, where the image has no relocation for it: of a PC-relative
/// one that the assembler resolved (a local call in one section), and of any field of an image that was linked without
/// `--emit-relocs` (CONFIG_RELOCATABLE not set), which is loaded where it was linked.
fn implied_target(image: &KernelImage, (live, address): (&[u8], u64), reloc: &Reloc, offset: u64) -> Option<u64> {
    let width = field_width(reloc.kind) as usize;
    let bytes = live.get(offset as usize..offset as usize + width)?;
    let word = |bytes: &[u8]| {
        let mut all = [0; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(all)
    };
    let signed = |bytes: &[u8]| ((word(bytes) as i64) << (64 - 8 * bytes.len()) >> (64 - 8 * bytes.len())) as u64;
    match reloc.kind {
        kind if is_pc_relative(kind) => Some((address + offset).wrapping_add(signed(bytes))),
        _ if image.has_relocs() => None,
        kind if kind == elf::R_X86_64_64.0 || kind == elf::R_X86_64_32.0 => Some(word(bytes)),
        kind if kind == elf::R_X86_64_32S.0 => Some(signed(bytes)),
        _ => None,
    }
}

/// Whether the image's S + A is what the compiled relocation of `function` means: then, how that target's address moves.
/// Remembers where its symbol lives.
fn bind(
    image: &KernelImage,
    original: &Pieces<'_>,
    function: (PieceIndex, u64),
    reloc: &Reloc,
    target: u64,
    bindings: &mut Bindings,
) -> Option<AddressKind> {
    match original.target(reloc) {
        Target::External(symbol) => {
            let name = &original.object.symbol(symbol).name;
            let base = target.wrapping_sub(reloc.addend as u64);
            image.symbols().at(base).find(|symbol| symbol.name == *name).map(|symbol| symbol.address_kind)
        }
        Target::Piece(index, offset) => {
            let piece = original.piece(index);
            let meant = target.wrapping_add_signed(bias(reloc));
            let base = meant.wrapping_sub(offset as u64);
            let moved = |equal: bool| equal.then_some(AddressKind::Image);
            if piece.name == ".altinstr_aux" {
                return moved(slow_path_equal(image, original, function, (index, offset), meant));
            }
            // A string or constant, which the linker may have put anywhere.
            if piece.kind == PieceKind::Anonymous {
                return moved(original.relocs(index).is_empty() && same_contents(image, original, index, base));
            }
            let named = image.symbols().at(base).find(|candidate| {
                let mut names = piece.symbols.iter().map(|&symbol| stem(&original.object.symbol(symbol).name));
                names.any(|name| name == stem(&candidate.name))
            })?;
            let read_only = piece.kind == PieceKind::Datum && piece.role == SectionRole::ReadOnly;
            let same = !read_only || same_contents(image, original, index, base);
            let bound = same && bindings.insert(index, base).is_none_or(|before| before == base);
            bound.then_some(named.address_kind)
        }
    }
}

/// Whether two relocation types make the same field: a call is as good by `R_X86_64_PLT32` as by `R_X86_64_PC32`.
fn same_field(a: u32, b: u32) -> bool {
    let plain = |kind| if kind == elf::R_X86_64_PLT32.0 { elf::R_X86_64_PC32.0 } else { kind };
    plain(a) == plain(b)
}

/// Whether the image has the contents of a piece at an address, relocated fields aside.
fn same_contents(image: &KernelImage, original: &Pieces<'_>, index: PieceIndex, address: u64) -> bool {
    let (piece, relocs) = (original.piece(index), original.relocs(index));
    let mut compiled = original.bytes(index).to_vec();
    let Some(live) = image.bytes(address, compiled.len()) else { return false };
    let mut live = live.to_vec();
    blank(&mut compiled, relocs, piece.range.start);
    blank(&mut live, relocs, piece.range.start);
    compiled.len() as u64 == piece.size() && compiled == live
}

/// Whether the slow path of `static_cpu_has` at `offset` of `.altinstr_aux` is the one at `address` of the image: equal
/// code outside relocated fields, and the same ways back into the function.
fn slow_path_equal(
    image: &KernelImage,
    original: &Pieces<'_>,
    (function, start): (PieceIndex, u64),
    (aux, offset): (PieceIndex, i64),
    address: u64,
) -> bool {
    let section = original.piece(aux);
    let Some(code) = usize::try_from(offset).ok().and_then(|offset| original.bytes(aux).get(offset..)) else {
        return false;
    };
    let Some(len) = straight_line(code) else { return false };
    let Some(live) = image.bytes(address, len) else { return false };
    let from = section.range.start + offset as u64;
    let relocs = original.relocs_in(section.section, from..from + len as u64);
    let (mut code, mut blanked) = (code[..len].to_vec(), live.to_vec());
    blank(&mut code, relocs, from);
    blank(&mut blanked, relocs, from);
    code == blanked
        && relocs.iter().all(|reloc| {
            let kept = image.relocs(address + (reloc.offset - from), 1).first().map(|kept| kept.target);
            let there = kept.or_else(|| implied_target(image, (live, address), reloc, reloc.offset - from));
            match original.target(reloc) {
                Target::Piece(piece, at) if piece == function => {
                    there.is_some_and(|target| target.wrapping_add_signed(bias(reloc)) == start.wrapping_add_signed(at))
                }
                Target::External(symbol) => there.is_some_and(|target| {
                    let base = target.wrapping_sub(reloc.addend as u64);
                    image.symbols().at(base).any(|found| found.name == original.object.symbol(symbol).name)
                }),
                Target::Piece(..) => false,
            }
        })
}

/// Length of the code up to and including the first instruction that never continues behind itself.
pub fn straight_line(code: &[u8]) -> Option<usize> {
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    while decoder.can_decode() {
        if matches!(decoder.decode().flow_control(), FlowControl::UnconditionalBranch | FlowControl::Return) {
            return Some(decoder.position());
        }
    }
    None
}

fn stem(name: &str) -> &str {
    diff_analyzer::correlate::without_number(name)
}

/// The instruction that covers a byte, disassembled.
pub fn instruction_at(code: &[u8], address: u64, offset: u64) -> String {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut text = String::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.next_ip() > address + offset {
            IntelFormatter::new().format(&instruction, &mut text);
            break;
        }
    }
    if text.is_empty() { "the end".to_owned() } else { text }
}

fn describe(original: &Pieces<'_>, reloc: &Reloc) -> String {
    match original.target(reloc) {
        Target::External(symbol) => format!("`{}`", original.object.symbol(symbol).name),
        Target::Piece(index, _) if original.piece(index).role == SectionRole::Strings => {
            let text = original.bytes(index);
            format!("{:?}", String::from_utf8_lossy(text.strip_suffix(&[0]).unwrap_or(text)))
        }
        Target::Piece(index, 0) => format!("`{}`", original.piece(index).name),
        Target::Piece(index, offset) => format!("`{}`{offset:+#x}", original.piece(index).name),
    }
}

fn describe_address(image: &KernelImage, address: u64) -> String {
    match image.symbols().at(address).next() {
        Some(symbol) => format!("`{}`", symbol.name),
        None => match image.c_string(address) {
            Some(text)
                if !text.is_empty()
                    && text.len() < 80
                    && text.iter().all(|&b| b.is_ascii_graphic() || b" \n\t\x01".contains(&b)) =>
            {
                format!("{:?}", String::from_utf8_lossy(text))
            }
            _ => format!("{address:#x}"),
        },
    }
}
