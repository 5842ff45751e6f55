//! Code as text for people, with names in place of addresses.
//!
//! Comes in: bytes of a function and something that knows what its fields refer to (relocations of an object, symbols of
//! an image). Decided: how an instruction is written, and when two instructions say the same although their addresses
//! differ. Goes out: [`Line`]s.

use crate::correlate::without_number;
use crate::object::{Definition, Reloc};
use crate::pieces::{PieceIndex, PieceKind, Pieces, Target, bias};
use crate::special::SectionRole;
use iced_x86::{
    ConstantOffsets, Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter, OpKind, SymbolResolver,
    SymbolResult,
};
use std::cell::RefCell;
use std::rc::Rc;

/// An instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Byte offset in the function.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// As people read it; jumps inside the function lead to `+offset`.
    pub text: String,
    /// The same without what changes when code before it grows or shrinks: equal keys mean equal instructions.
    pub key: String,
}

/// What a field refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldName {
    /// For people.
    pub text: String,
    /// Without the numbers that compilers hand out.
    pub key: String,
}

impl FieldName {
    /// A name that no compiler numbered.
    pub fn plain(text: String) -> Self {
        Self { key: text.clone(), text }
    }
}

/// Knows what fields refer to.
pub trait FieldNames {
    /// The name behind the field at `offset` of the function, which the instruction takes for `value`: an address if it is
    /// relative to the instruction pointer or a branch, the number in the field otherwise.
    fn name(&self, offset: u64, value: u64) -> Option<FieldName>;
}

/// Disassembles a function that starts at `address`.
pub fn disassemble(code: &[u8], address: u64, names: &dyn FieldNames) -> Vec<Line> {
    let fields = Rc::new(RefCell::new(Fields::default()));
    let mut formatter = IntelFormatter::with_options(Some(Box::new(Resolver(Rc::clone(&fields)))), None);
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_show_branch_size(false);
    options.set_branch_leading_zeros(false);
    options.set_space_after_operand_separator(true);
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut lines = Vec::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        let offset = instruction.ip() - address;
        *fields.borrow_mut() =
            Fields::of(&instruction, decoder.get_constant_offsets(&instruction), (address, code.len() as u64), names);
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        let fields = fields.borrow();
        let (mut key, mut shown) = (text.clone(), text);
        for (mark, field) in [(DISPLACEMENT, &fields.displacement), (IMMEDIATE, &fields.immediate)] {
            if let Some(name) = field {
                key = key.replace(mark, &name.key);
                shown = shown.replace(mark, &name.text);
            }
        }
        lines.push(Line { offset, len: instruction.len() as u64, text: shown, key });
    }
    lines
}

// Stand for names until the text is complete; neither occurs in an instruction.
const DISPLACEMENT: &str = "\u{1}";
const IMMEDIATE: &str = "\u{2}";

/// Names of the two fields an instruction can have.
#[derive(Debug, Default)]
struct Fields {
    displacement: Option<FieldName>,
    immediate: Option<FieldName>,
}

impl Fields {
    fn of(
        instruction: &Instruction,
        offsets: ConstantOffsets,
        (start, len): (u64, u64),
        names: &dyn FieldNames,
    ) -> Self {
        let at = instruction.ip() - start;
        let displacement = offsets
            .has_displacement()
            .then(|| names.name(at + offsets.displacement_offset() as u64, instruction.memory_displacement64()))
            .flatten();
        let branch = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64;
        let immediate = if branch {
            let target = instruction.near_branch64();
            let inside = (start..start + len).contains(&target);
            names.name(at + offsets.immediate_offset() as u64, target).or_else(|| {
                inside.then(|| FieldName { text: format!("+{:#x}", target - start), key: "inside".to_owned() })
            })
        } else {
            let value = (0..instruction.op_count()).find_map(|index| instruction.try_immediate(index).ok());
            offsets
                .has_immediate()
                .then(|| names.name(at + offsets.immediate_offset() as u64, value.unwrap_or_default()))
                .flatten()
        };
        Self { displacement, immediate }
    }
}

struct Resolver(Rc<RefCell<Fields>>);

impl SymbolResolver for Resolver {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        _operand: u32,
        instruction_operand: Option<u32>,
        address: u64,
        _address_size: u32,
    ) -> Option<SymbolResult<'_>> {
        let fields = self.0.borrow();
        let memory = instruction.op_kind(instruction_operand?) == OpKind::Memory;
        let (mark, field) = if memory { (DISPLACEMENT, &fields.displacement) } else { (IMMEDIATE, &fields.immediate) };
        field.as_ref().map(|_| SymbolResult::with_str(address, mark))
    }
}

/// Names from the relocations of a function of an object.
pub struct ObjectNames<'a, 'o> {
    /// The object.
    pub pieces: &'a Pieces<'o>,
    /// The function.
    pub function: PieceIndex,
}

impl FieldNames for ObjectNames<'_, '_> {
    fn name(&self, offset: u64, _value: u64) -> Option<FieldName> {
        let place = self.pieces.piece(self.function).range.start + offset;
        let relocs = self.pieces.relocs(self.function);
        let at = relocs.binary_search_by_key(&place, |reloc| reloc.offset).ok()?;
        Some(reference(self.pieces, &relocs[at]))
    }
}

/// What a relocation refers to, for people.
pub fn reference(pieces: &Pieces<'_>, reloc: &Reloc) -> FieldName {
    match pieces.target(reloc) {
        Target::External(symbol) => {
            let symbol = pieces.object.symbol(symbol);
            let addend = reloc.addend.wrapping_add(bias(reloc));
            let name = if symbol.definition == Definition::Absolute && symbol.name.is_empty() {
                format!("{:#x}", symbol.value)
            } else {
                symbol.name.clone()
            };
            FieldName::plain(with_offset(&name, addend))
        }
        Target::Piece(index, offset) => place(pieces, index, offset),
    }
}

/// A place in a piece of an object, for people.
pub fn place(pieces: &Pieces<'_>, index: PieceIndex, offset: i64) -> FieldName {
    let piece = pieces.piece(index);
    match piece.kind {
        PieceKind::Function | PieceKind::Datum => {
            FieldName { text: with_offset(&piece.name, offset), key: with_offset(without_number(&piece.name), offset) }
        }
        PieceKind::Anonymous if piece.role == SectionRole::Strings => {
            let text = format!("{:?}", string(pieces, index));
            FieldName::plain(with_offset(&text, offset))
        }
        PieceKind::Anonymous => {
            let (bytes, relocs) = (pieces.bytes(index), pieces.relocs(index));
            let section = &pieces.object.section(piece.section).name;
            if bytes.len() <= 16 && relocs.is_empty() && !bytes.is_empty() {
                let digits: String = bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect();
                return FieldName::plain(with_offset(&format!("{section}:{digits}"), offset));
            }
            let whole = piece.range.start as i64 + offset;
            FieldName { text: with_offset(section, whole), key: section.clone() }
        }
    }
}

/// Text of a string piece, of characters of any width.
pub fn string(pieces: &Pieces<'_>, index: PieceIndex) -> String {
    let piece = pieces.piece(index);
    let bytes = pieces.bytes(index);
    let section = pieces.object.section(piece.section);
    match section.entry_size {
        2 => {
            let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
            String::from_utf16_lossy(units.strip_suffix(&[0]).unwrap_or(&units))
        }
        _ => String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned(),
    }
}

fn with_offset(name: &str, offset: i64) -> String {
    if offset == 0 { name.to_owned() } else { format!("{name}{offset:+#x}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Known;

    impl FieldNames for Known {
        fn name(&self, offset: u64, value: u64) -> Option<FieldName> {
            match offset {
                1 => Some(FieldName { text: format!("call target {value:#x}"), key: "target".to_owned() }),
                8 => Some(FieldName::plain("datum+0x8".to_owned())),
                _ => None,
            }
        }
    }

    #[test]
    fn fields_have_names_and_jumps_inside_have_offsets() {
        // call +0x100; mov eax, [rip+8]; je -13; mov edi, 5; ret
        let code = [0xe8, 0xfb, 0, 0, 0, 0x8b, 0x05, 0, 8, 0, 0, 0x74, 0xf3, 0xbf, 5, 0, 0, 0, 0xc3];
        let lines = disassemble(&code, 0x1000, &Known);
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts[0], "call call target 0x1100");
        assert_eq!(&texts[2..], ["je +0x0", "mov edi, 5", "ret"]);
        assert_eq!((lines[0].key.as_str(), lines[2].key.as_str()), ("call target", "je inside"));
        assert_eq!(lines.iter().map(|line| line.offset).collect::<Vec<_>>(), [0, 5, 11, 13, 18]);
    }

    #[test]
    fn operands_are_named_by_the_field_they_come_from() {
        struct Both;
        impl FieldNames for Both {
            fn name(&self, offset: u64, _value: u64) -> Option<FieldName> {
                match offset {
                    2 => Some(FieldName::plain("datum+0x8".to_owned())),
                    6 => Some(FieldName::plain("\"text\"".to_owned())),
                    _ => None,
                }
            }
        }
        // mov dword [rip+0], imm32
        let code = [0xc7, 0x05, 0, 0, 0, 0, 0, 0, 0, 0];
        let lines = disassemble(&code, 0, &Both);
        assert_eq!(lines[0].text, "mov dword ptr [datum+0x8], \"text\"");
    }
}
