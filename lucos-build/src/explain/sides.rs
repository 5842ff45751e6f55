//! The versions of a function that can be explained: compiled, and in the kernel image.
//!
//! Comes in: pieces of an object with its source lines, or the mapped image. Decided: how an address is called. Goes out:
//! [`Side`]s.

use super::Side;
use super::lines::{SourceLines, SourcePlace};
use diff_analyzer::disassemble::{FieldName, FieldNames, Line, ObjectNames, disassemble};
use diff_analyzer::pieces::{PieceIndex, Pieces, is_pc_relative};
use prelink::vmlinux::KernelImage;

/// A function of an object.
pub struct Compiled<'a, 'o> {
    /// What the object is.
    pub title: &'static str,
    /// The object.
    pub pieces: &'a Pieces<'o>,
    /// The function.
    pub function: PieceIndex,
    /// Its source lines, if they are known.
    pub lines: Option<&'a SourceLines>,
    /// Compared with an image, where constants have no names.
    pub against_image: bool,
}

impl Side for Compiled<'_, '_> {
    fn title(&self) -> String {
        self.title.to_owned()
    }

    fn instructions(&self) -> Vec<Line> {
        let names = ObjectNames { pieces: self.pieces, function: self.function };
        let code = self.pieces.bytes(self.function);
        if self.against_image { disassemble(code, 0, &Coarse(names)) } else { disassemble(code, 0, &names) }
    }

    fn places(&self, offset: u64) -> Vec<SourcePlace> {
        let piece = self.pieces.piece(self.function);
        self.lines.map(|lines| lines.at(piece.section, piece.range.start + offset)).unwrap_or_default()
    }
}

/// Names of an object, with keys that an image can have as well.
struct Coarse<'a, 'o>(ObjectNames<'a, 'o>);

impl FieldNames for Coarse<'_, '_> {
    fn name(&self, offset: u64, value: u64) -> Option<FieldName> {
        let name = self.0.name(offset, value)?;
        let constant = name.key.starts_with(".rodata") || name.key.starts_with(".data");
        Some(if constant { FieldName { key: CONSTANT.to_owned(), ..name } } else { name })
    }
}

/// Key of everything that has no name in an image.
const CONSTANT: &str = "a constant";

/// A function of the kernel image.
pub struct InImage<'i> {
    /// The image.
    pub image: &'i KernelImage,
    /// Its address.
    pub address: u64,
    /// Its size.
    pub size: u64,
}

impl Side for InImage<'_> {
    fn title(&self) -> String {
        "vmlinux".to_owned()
    }

    fn instructions(&self) -> Vec<Line> {
        let code = self.image.bytes(self.address, self.size as usize).unwrap_or_default();
        disassemble(code, self.address, self)
    }

    fn places(&self, _offset: u64) -> Vec<SourcePlace> {
        // The other side shows the same source.
        Vec::new()
    }
}

impl FieldNames for InImage<'_> {
    fn name(&self, offset: u64, value: u64) -> Option<FieldName> {
        let field = self.address + offset;
        let kept = self.image.relocs(self.address, self.size);
        let reloc = kept.binary_search_by_key(&field, |reloc| reloc.address).ok().map(|at| kept[at]);
        let inside = (self.address..self.address + self.size).contains(&value);
        match reloc {
            Some(reloc) if is_pc_relative(reloc.kind) => Some(describe(self.image, value)),
            Some(reloc) => Some(describe(self.image, reloc.target)),
            // A call that the assembler resolved; numbers that happen to be addresses of code are rare.
            None if !inside && self.image.symbols().at(value).next().is_some() && value >= KERNEL => {
                Some(describe(self.image, value))
            }
            None => None,
        }
    }
}

/// The kernel's half of the address space.
const KERNEL: u64 = 0xffff_8000_0000_0000;

/// What is at an address of the image.
fn describe(image: &KernelImage, address: u64) -> FieldName {
    if let Some(symbol) = image.symbols().at(address).find(|symbol| !symbol.name.is_empty()) {
        let key = diff_analyzer::correlate::without_number(&symbol.name).to_owned();
        return FieldName { text: symbol.name.clone(), key };
    }
    let printable = |byte: &u8| byte.is_ascii_graphic() || b" \n\t\x01".contains(byte);
    let text =
        image.c_string(address).filter(|text| !text.is_empty() && text.len() < 400 && text.iter().all(printable));
    if let Some(text) = text {
        return FieldName::plain(format!("{:?}", String::from_utf8_lossy(text)));
    }
    if let Some((symbol, offset)) = image.symbols().containing(address) {
        let key = format!("{}{offset:+#x}", diff_analyzer::correlate::without_number(symbol));
        return FieldName { text: format!("{symbol}{offset:+#x}"), key };
    }
    FieldName { text: format!("{address:#x}"), key: CONSTANT.to_owned() }
}
