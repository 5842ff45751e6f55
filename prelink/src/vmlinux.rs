//! The kernel image: sections, symbols, notes and the relocations that the linker kept.
//!
//! Comes in: the path of a `vmlinux` with symbols. Decided: that it is an x86-64 kernel with a build id. Goes out:
//! [`KernelImage`], which maps the file and parses only what is asked for. A loadable module, linked at addresses of its
//! own against the kernel, has the same form ([`crate::module`]).

use crate::symbol_db::{AddressKind, KernelSymbol, SymbolDb, SymbolKind};
use diff_analyzer::pieces::is_pc_relative;
use goblin::elf::header::{EM_X86_64, ET_EXEC};
use goblin::elf::section_header::{SHF_ALLOC, SHN_ABS, SHT_NOBITS, SHT_RELA};
use goblin::elf::sym::{STB_GLOBAL, STB_WEAK, STT_FILE, STT_FUNC, STT_OBJECT, STT_SECTION};
use goblin::elf::{Elf, note::NT_GNU_BUILD_ID};
use iced_x86::{Decoder, DecoderOptions};
use lpk_format::ModuleId;
use memmap2::Mmap;
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Bytes of an instruction at most (Intel SDM, volume 2, section 2.3.11).
const MAX_INSTRUCTION: usize = 15;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be opened or mapped.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Not an ELF file.
    #[error("{path} is not an ELF file: {source}")]
    Elf {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: Box<goblin::error::Error>,
    },
    /// An ELF file, but not a linked x86-64 kernel image with symbols.
    #[error("{path} is not a kernel image: {reason}")]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
}

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

    fn from_map(path: &Path, map: Mmap) -> Result<Self, ImageError> {
        let not = |reason: &str| ImageError::NotAKernel { path: path.to_owned(), reason: reason.to_owned() };
        let elf_error = |source| ImageError::Elf { path: path.to_owned(), source: Box::new(source) };
        let elf = Elf::parse(&map).map_err(elf_error)?;
        if elf.header.e_machine != EM_X86_64 || !elf.is_64 {
            return Err(not("it is not for x86-64"));
        }
        if elf.header.e_type != ET_EXEC {
            return Err(not("it is not a linked executable; give the uncompressed `vmlinux`"));
        }
        let mut sections = Vec::with_capacity(elf.section_headers.len());
        let mut rela = HashMap::new();
        for header in &elf.section_headers {
            let name = elf.shdr_strtab.get_at(header.sh_name).unwrap_or_default().to_owned();
            let (offset, size) = (header.sh_offset as usize, header.sh_size as usize);
            let has_contents = header.sh_type != SHT_NOBITS;
            if has_contents && offset.checked_add(size).is_none_or(|end| end > map.len()) {
                return Err(not(&format!("section {name} reaches beyond the end of the file")));
            }
            if header.sh_type == SHT_RELA {
                rela.insert(header.sh_info as usize, (offset, size));
            }
            let allocated = header.sh_flags & u64::from(SHF_ALLOC) != 0;
            let (address, size) = (header.sh_addr, header.sh_size);
            sections.push(ImageSection { name, address, size, file_offset: offset, has_contents, allocated });
        }
        let per_cpu = sections.iter().enumerate().find(|(_, section)| section.name == ".data..percpu");
        let (entries, symbols) = read_symbols(&elf, per_cpu);
        if symbols.is_empty() {
            return Err(not("it has no symbol table; a stripped image cannot be used"));
        }
        let mut image = Self {
            path: path.to_owned(),
            sections,
            rela,
            entries,
            symbols: SymbolDb::new(symbols),
            build_id: Vec::new(),
            banner: String::new(),
            relocs: OnceLock::new(),
            module: None,
            map: Contents::Mapped(map),
        };
        image.build_id = image.find_build_id().ok_or_else(|| not("it has no GNU build id"))?;
        image.banner = image.find_banner().ok_or_else(|| not("it has no `linux_banner`"))?;
        Ok(image)
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

    /// Fields of the image that hold an address or lead there, sorted; those of debug information left out. Where the linker
    /// kept no relocations, all bytes that look like such a field count: rather one too many than one too few.
    pub fn references(&self, address: u64) -> Vec<u64> {
        let sections = self.sections.iter().enumerate().filter(|(_, section)| section.allocated);
        let leads = |reloc: &ImageReloc| {
            let behind = is_pc_relative(reloc.kind) && reloc.target.wrapping_add(4) == address;
            behind || reloc.target == address
        };
        let mut fields: Vec<u64> = if let Some(relocs) = self.module_relocs() {
            relocs.filter(|reloc| leads(reloc)).map(|reloc| reloc.address).collect()
        } else if self.rela.is_empty() {
            sections.flat_map(|(_, section)| lookalikes(section.address, self.contents(section), address)).collect()
        } else {
            let raw = sections.filter_map(|(index, _)| self.rela.get(&index));
            let relocs = raw.flat_map(|&raw| self.read_relocs(raw));
            relocs.filter(|reloc| leads(reloc)).map(|reloc| reloc.address).collect()
        };
        fields.sort_unstable();
        fields
    }

    /// Fields of the image that hold an address of a range or lead into it, as [`KernelImage::references`] finds them.
    pub fn references_into(&self, range: &Range<u64>) -> Vec<u64> {
        let sections = self.sections.iter().enumerate().filter(|(_, section)| section.allocated);
        let mut fields: Vec<u64> = if let Some(relocs) = self.module_relocs() {
            relocs.filter(|reloc| self.leads_into(reloc, range)).map(|reloc| reloc.address).collect()
        } else if self.rela.is_empty() {
            let all = sections.map(|(_, section)| (section.address, self.contents(section))).collect::<Vec<_>>();
            all.par_iter().flat_map_iter(|(start, bytes)| lookalikes_into(*start, bytes, range)).collect()
        } else {
            let raw = sections.filter_map(|(index, _)| self.rela.get(&index)).collect::<Vec<_>>();
            let relocs = raw.par_iter().flat_map_iter(|&&raw| self.read_relocs(raw));
            relocs.filter(|reloc| self.leads_into(reloc, range)).map(|reloc| reloc.address).collect()
        };
        fields.sort_unstable();
        fields
    }

    /// All relocations of a module that is loaded; those of the kernel's image are read when they are needed.
    fn module_relocs(&self) -> Option<impl Iterator<Item = &ImageReloc>> {
        self.module.as_ref()?;
        let relocs = self.relocs.get()?.iter();
        Some(relocs.filter(|(index, _)| self.sections[**index].allocated).flat_map(|(_, relocs)| relocs))
    }

    fn leads_into(&self, reloc: &ImageReloc, range: &Range<u64>) -> bool {
        if !is_pc_relative(reloc.kind) {
            return range.contains(&reloc.target);
        }
        // The processor counts from the end of the instruction, where an immediate of up to four bytes may follow the field.
        let next = reloc.target.wrapping_add(4);
        let farthest = next.wrapping_add(4);
        if farthest < range.start || next >= range.end {
            return false;
        }
        let is_clear = next >= range.start && farthest < range.end;
        is_clear || range.contains(&next.wrapping_add(self.behind_field(reloc.address)))
    }

    /// Bytes of an instruction behind the field of a relocation in it.
    fn behind_field(&self, field: u64) -> u64 {
        let Some((_, offset)) = self.symbols.containing(field) else { return 0 };
        let start = field - offset;
        let len = offset as usize + MAX_INSTRUCTION;
        let code = (offset as usize..=len).rev().find_map(|len| self.bytes(start, len));
        let mut decoder = Decoder::with_ip(64, code.unwrap_or_default(), start, DecoderOptions::NONE);
        while decoder.can_decode() {
            let instruction = decoder.decode();
            if instruction.next_ip() > field {
                return instruction.next_ip().saturating_sub(field + 4);
            }
        }
        0
    }

    /// Whether nothing lies in a range behind a datum: no symbol, no contents, nothing that leads there.
    pub fn is_room(&self, range: &Range<u64>) -> bool {
        let Some(section) = self.section_at(range.start.saturating_sub(1)) else { return false };
        let inside = range.end <= section.address + section.size;
        let empty = !section.has_contents
            || self
                .bytes(range.start, (range.end - range.start) as usize)
                .is_some_and(|bytes| bytes.iter().all(|&byte| byte == 0));
        let symbol = || self.symbols.iter().any(|symbol| range.contains(&symbol.address));
        inside && empty && !symbol() && self.references_into(range).is_empty()
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

    fn find_build_id(&self) -> Option<Vec<u8>> {
        let elf = Elf::parse(&self.map).ok()?;
        elf.iter_note_sections(&self.map, None)?
            .filter_map(Result::ok)
            .find(|note| note.n_type == NT_GNU_BUILD_ID && note.name == "GNU")
            .map(|note| note.desc.to_vec())
    }

    fn find_banner(&self) -> Option<String> {
        let text = self.c_string(self.symbols.address_of("linux_banner")?)?;
        Some(String::from_utf8_lossy(text).trim_end().to_owned())
    }
}

/// Places in the bytes at `start` whose next four hold the low half of an address, or the way to it from themselves or from
/// behind themselves.
fn lookalikes(start: u64, bytes: &[u8], address: u64) -> impl Iterator<Item = u64> {
    let low = address as u32;
    bytes.windows(4).enumerate().filter_map(move |(offset, field)| {
        let at = start + offset as u64;
        let value = u32::from_le_bytes(field.try_into().expect("four bytes"));
        let here = low.wrapping_sub(at as u32);
        // Zeros right before the place are the end of what fills the gap.
        let behind = value == here.wrapping_sub(4) && value != 0;
        (value == low || value == here || behind).then_some(at)
    })
}

/// The same for a range; an immediate of up to four bytes may follow a field.
fn lookalikes_into(start: u64, bytes: &[u8], range: &Range<u64>) -> impl Iterator<Item = u64> {
    let inside = range.clone();
    bytes.windows(4).enumerate().filter_map(move |(offset, field)| {
        let at = start + offset as u64;
        let value = u32::from_le_bytes(field.try_into().expect("four bytes"));
        let leads = |base: u32| {
            u64::from(base.wrapping_add(value).wrapping_sub(inside.start as u32)) < inside.end - inside.start
        };
        let behind = value != 0 && [4, 5, 6, 8].iter().any(|behind| leads((at as u32).wrapping_add(*behind)));
        (leads(0) || leads(at as u32) || behind).then_some(at)
    })
}

fn read_symbols(
    elf: &Elf<'_>,
    per_cpu: Option<(usize, &ImageSection)>,
) -> (Vec<(u64, AddressKind)>, Vec<KernelSymbol>) {
    let mut entries = Vec::with_capacity(elf.syms.len());
    let mut symbols = Vec::with_capacity(elf.syms.len());
    let mut file = None;
    for symbol in &elf.syms {
        let address_kind = match symbol.st_shndx {
            section if section == SHN_ABS as usize => AddressKind::Absolute,
            // The linker says of `__init_begin` and `__per_cpu_load` that they are in this section, but they are addresses
            // behind it (`is_percpu_sym` of arch/x86/tools/relocs.c).
            section
                if per_cpu.is_some_and(|(index, area)| {
                    section == index
                        && (area.address..=area.address.saturating_add(area.size)).contains(&symbol.st_value)
                }) =>
            {
                AddressKind::PerCpu
            }
            _ => AddressKind::Image,
        };
        entries.push((symbol.st_value, address_kind));
        let name = elf.strtab.get_at(symbol.st_name).unwrap_or_default();
        match symbol.st_type() {
            STT_FILE => file = Some(name.to_owned()),
            STT_SECTION => {}
            _ if symbol.st_shndx == 0 || name.is_empty() => {}
            kind => {
                let global = matches!(symbol.st_bind(), STB_GLOBAL | STB_WEAK);
                symbols.push(KernelSymbol {
                    name: name.to_owned(),
                    address: symbol.st_value,
                    size: symbol.st_size,
                    kind: match kind {
                        STT_FUNC => SymbolKind::Function,
                        STT_OBJECT => SymbolKind::Object,
                        _ => SymbolKind::Label,
                    },
                    global,
                    address_kind,
                    file: if global { None } else { file.clone() },
                });
            }
        }
    }
    (entries, symbols)
}
