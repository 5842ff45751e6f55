//! What a kernel image has to have to be used.
//!
//! Comes in: a mapped file. Decided: that it is a linked x86-64 kernel with symbols, build id and banner, and that its
//! sections lie inside the file. Goes out: a [`KernelImage`], or an [`ImageError`].

use super::{Contents, ImageSection, KernelImage};
use crate::symbol_db::{AddressKind, KernelSymbol, SymbolDb, SymbolKind};
use goblin::elf::header::{EM_X86_64, ET_EXEC};
use goblin::elf::section_header::{SHF_ALLOC, SHN_ABS, SHT_NOBITS, SHT_RELA};
use goblin::elf::sym::{STB_GLOBAL, STB_WEAK, STT_FILE, STT_SECTION};
use goblin::elf::{Elf, note::NT_GNU_BUILD_ID};
use memmap2::Mmap;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

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

impl KernelImage {
    pub(super) fn from_map(path: &Path, map: Mmap) -> Result<Self, ImageError> {
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
                    kind: SymbolKind::of_elf(kind),
                    global,
                    address_kind,
                    file: if global { None } else { file.clone() },
                });
            }
        }
    }
    (entries, symbols)
}
