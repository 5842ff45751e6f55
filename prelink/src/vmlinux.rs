//! The kernel image: sections, symbols, notes and the relocations that the linker kept.
//!
//! Comes in: the path of a `vmlinux` with symbols. Decided: that it is an x86-64 kernel with a build id. Goes out:
//! [`KernelImage`], which maps the file and parses only what is asked for. A loadable module, linked at addresses of its
//! own against the kernel, has the same form ([`crate::module`]).

mod open;
mod references;

pub use open::ImageError;

use crate::symbol_db::{AddressKind, SymbolDb};
use lpk_format::ModuleId;
use memmap2::Mmap;
use std::collections::HashMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A section of the image.
#[derive(Debug, Clone)]
pub struct ImageSection {
    /// Name.
    pub name: String,
    /// Link address.
    pub address: u64,
    /// Size in memory, in bytes.
    pub size: u64,
    pub(crate) file_offset: usize,
    pub(crate) has_contents: bool,
    pub(crate) allocated: bool,
}

/// A relocation that the linker kept (`--emit-relocs`); the field already holds the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageReloc {
    /// Link address of the field.
    pub address: u64,
    /// `R_X86_64_*`.
    pub kind: u32,
    /// S + A as the linker knew them.
    pub target: u64,
    /// S alone.
    pub symbol: u64,
    /// How the target's address moves.
    pub target_kind: AddressKind,
}

/// Contents of the file, or of a module as linked.
pub(crate) enum Contents {
    /// A file.
    Mapped(Mmap),
    /// Linked here.
    Owned(Vec<u8>),
}

impl Deref for Contents {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// A mapped kernel image, or a module linked against one.
pub struct KernelImage {
    pub(crate) path: PathBuf,
    pub(crate) map: Contents,
    pub(crate) sections: Vec<ImageSection>,
    /// Raw relocation sections by the index of the section they apply to: (file offset, size).
    pub(crate) rela: HashMap<usize, (usize, usize)>,
    /// Address and kind of every symbol-table entry, in file order; relocations name these.
    pub(crate) entries: Vec<(u64, AddressKind)>,
    pub(crate) symbols: SymbolDb,
    pub(crate) build_id: Vec<u8>,
    pub(crate) banner: String,
    pub(crate) relocs: OnceLock<HashMap<usize, Vec<ImageReloc>>>,
    /// Which module it is.
    pub(crate) module: Option<ModuleId>,
}

impl KernelImage {
    /// Maps and indexes an image.
    ///
    /// # Errors
    /// [`ImageError`] when the file cannot be read or is no linked x86-64 kernel with symbols, build id and banner.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let io = |source| ImageError::Io { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(io)?;
        // SAFETY: the mapping is private and read-only. A file that another process truncates while it is mapped
        // makes this process fail with SIGBUS; no memory of ours is changed by it.
        // JUSTIFICATION: the image has 600 MB, of which a build looks at a few per cent.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Self::from_map(path, map)
    }

    /// Where the image was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The module, if this is one; `None` is the kernel image itself.
    pub fn module(&self) -> Option<&ModuleId> {
        self.module.as_ref()
    }

    /// GNU build id.
    pub fn build_id(&self) -> &[u8] {
        &self.build_id
    }

    /// `linux_banner` without the newline: release, builder, compiler, version.
    pub fn banner(&self) -> &str {
        &self.banner
    }

    /// The release, as `uname -r` prints it: the third word of the banner.
    pub fn release(&self) -> &str {
        self.banner.split(' ').nth(2).unwrap_or_default()
    }

    /// All symbols.
    pub fn symbols(&self) -> &SymbolDb {
        &self.symbols
    }

    /// Contents of a section; empty when there is none of that name.
    pub fn section_data(&self, name: &str) -> &[u8] {
        self.sections.iter().find(|section| section.name == name).map_or(&[], |section| self.contents(section))
    }

    /// Section of an address.
    pub fn section_at(&self, address: u64) -> Option<&ImageSection> {
        self.section_index(address).map(|index| &self.sections[index])
    }

    /// `len` bytes at a link address, if they are contents of one section.
    pub fn bytes(&self, address: u64, len: usize) -> Option<&[u8]> {
        let section = self.section_at(address)?;
        let start = (address - section.address) as usize;
        self.contents(section).get(start..start.checked_add(len)?)
    }

    /// The zero-terminated string at a link address, without the zero.
    pub fn c_string(&self, address: u64) -> Option<&[u8]> {
        let section = self.section_at(address)?;
        let rest = self.contents(section).get((address - section.address) as usize..)?;
        rest.iter().position(|&byte| byte == 0).map(|end| &rest[..end])
    }

    /// The contents between two symbols of the linker script, with the link address of the first byte; of a module those of
    /// the section that the linker script gathers there.
    pub fn between(&self, start: &str, stop: &str) -> Option<(u64, &[u8])> {
        if self.module.is_some() {
            let name = crate::module::section_of_table(start)?;
            let section = self.sections.iter().find(|section| section.name == name)?;
            return Some((section.address, self.contents(section)));
        }
        let (start, stop) = (self.symbols.address_of(start)?, self.symbols.address_of(stop)?);
        let len = usize::try_from(stop.checked_sub(start)?).ok()?;
        if len == 0 {
            return Some((start, &[]));
        }
        Some((start, self.bytes(start, len)?))
    }

    /// Relocations of the fields in `[start, start + len)`, sorted by address; all in one section.
    pub fn relocs(&self, start: u64, len: u64) -> &[ImageReloc] {
        let Some(index) = self.section_index(start) else { return &[] };
        let all = self.relocs.get_or_init(|| self.read_code_relocs());
        let Some(relocs) = all.get(&index) else { return &[] };
        let first = relocs.partition_point(|reloc| reloc.address < start);
        let last = relocs.partition_point(|reloc| reloc.address < start.saturating_add(len));
        &relocs[first..last]
    }

    /// Whether the image was linked with `--emit-relocs`.
    pub fn has_relocs(&self) -> bool {
        let text = self.sections.iter().position(|section| section.name == ".text");
        self.module.is_some() || text.is_some_and(|index| self.rela.contains_key(&index))
    }

    fn contents(&self, section: &ImageSection) -> &[u8] {
        if section.has_contents {
            // Checked against the file's length when the image was opened.
            &self.map[section.file_offset..section.file_offset + section.size as usize]
        } else {
            &[]
        }
    }

    fn section_index(&self, address: u64) -> Option<usize> {
        // `.data..percpu` is linked at 0 and is no part of the address space.
        self.sections.iter().position(|section| {
            section.allocated
                && section.address != 0
                && address >= section.address
                && address - section.address < section.size
        })
    }

    /// Relocations of all sections with code (`.text`, `.init.text`, …).
    fn read_code_relocs(&self) -> HashMap<usize, Vec<ImageReloc>> {
        let code = |index: &usize| {
            let name = self.sections[*index].name.as_str();
            name.ends_with("text") || name.starts_with(".altinstr")
        };
        self.rela
            .iter()
            .filter(|(index, _)| self.sections.len() > **index && code(index))
            .map(|(&index, &raw)| (index, self.read_relocs(raw)))
            .collect()
    }

    fn read_relocs(&self, (offset, size): (usize, usize)) -> Vec<ImageReloc> {
        let word = |raw: &[u8], at: usize| u64::from_le_bytes(raw[at..at + 8].try_into().expect("eight bytes"));
        let mut relocs: Vec<ImageReloc> = self.map[offset..offset + size]
            .chunks_exact(24)
            .filter_map(|raw| {
                let (address, info, addend) = (word(raw, 0), word(raw, 8), word(raw, 16));
                let &(symbol, target_kind) = self.entries.get((info >> 32) as usize)?;
                let target = symbol.wrapping_add(addend);
                Some(ImageReloc { address, kind: info as u32, target, symbol, target_kind })
            })
            .collect();
        relocs.sort_by_key(|reloc| reloc.address);
        relocs
    }
}
