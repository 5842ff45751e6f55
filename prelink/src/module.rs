//! A loadable module in the form of a linked image.
//!
//! Comes in: the bytes of a `.ko` and the kernel it was built for. Decided: a link address for each of its sections, in the
//! space that bundles have for modules; where each symbol lives, by the rules of the kernel's loader
//! (`kernel/module/main.c`, `simplify_symbols`): in the module, in the kernel, or in another module. All relocations are
//! applied at these addresses. Goes out: a [`KernelImage`], so that proof, link and boot sites work on a module as on the
//! kernel.

use crate::symbol_db::{AddressKind, KernelSymbol, SymbolDb, SymbolKind};
use crate::vmlinux::{Contents, ImageReloc, ImageSection, KernelImage};
use goblin::elf::Elf;
use goblin::elf::header::{EM_X86_64, ET_REL};
use goblin::elf::note::NT_GNU_BUILD_ID;
use goblin::elf::section_header::{SHF_ALLOC, SHN_ABS, SHN_COMMON, SHN_LORESERVE, SHN_UNDEF, SHT_NOBITS, SHT_RELA};
use goblin::elf::sym::{STB_LOCAL, STB_WEAK, STT_FILE, STT_SECTION, Sym};
use lpk_format::{MODULE_SPACE, ModuleId, ModuleImport, ModuleSection, RelocKind};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::OnceLock;

/// Sections that are in memory only while the module is being loaded (`kernel/module/main.c`, `rewrite_section_headers`).
const NOT_KEPT: [&str; 2] = [".modinfo", "__versions"];
/// Link addresses of imports are so far apart.
const IMPORT_SPACING: u64 = 16;
/// Sections begin at multiples of at least this.
const MIN_ALIGN: u64 = 16;

/// Why a file is not a module that can be updated.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// Not an ELF file.
    #[error("it is not an ELF file: {0}")]
    Elf(Box<goblin::error::Error>),
    /// Not a loadable module for this machine.
    #[error("it is not an x86-64 kernel module: {0}")]
    NotAModule(String),
    /// It was built for another kernel.
    #[error("it was built for kernel {found}, this one is {expected}")]
    OtherKernel {
        /// Release of the kernel.
        expected: String,
        /// What the module says.
        found: String,
    },
}

/// The module's section that the kernel's linker script gathers at a symbol (`include/asm-generic/vmlinux.lds.h`,
/// `arch/x86/kernel/vmlinux.lds.S`; `arch/x86/kernel/module.c` for modules).
pub(crate) fn section_of_table(start: &str) -> Option<&'static str> {
    let known = [
        ("__alt_instructions", ".altinstructions"),
        ("__parainstructions", ".parainstructions"),
        ("__start_static_call_sites", ".static_call_sites"),
        ("__start___jump_table", "__jump_table"),
        ("__retpoline_sites", ".retpoline_sites"),
        ("__return_sites", ".return_sites"),
        ("__smp_locks", ".smp_locks"),
        ("__start___ex_table", "__ex_table"),
        ("__start_mcount_loc", "__mcount_loc"),
    ];
    known.into_iter().find(|(symbol, _)| *symbol == start).map(|(_, section)| section)
}

/// Values of `.modinfo` (`name`, `vermagic`, …), the first of each key.
///
/// # Errors
/// [`ModuleError`] when it is no module.
pub fn info(bytes: &[u8]) -> Result<BTreeMap<String, String>, ModuleError> {
    let elf = parse(bytes)?;
    let mut info = BTreeMap::new();
    for header in &elf.section_headers {
        if elf.shdr_strtab.get_at(header.sh_name) != Some(".modinfo") {
            continue;
        }
        let text = contents(bytes, header).unwrap_or_default();
        for entry in text.split(|byte| *byte == 0) {
            if let Some((key, value)) = String::from_utf8_lossy(entry).split_once('=') {
                info.entry(key.to_owned()).or_insert_with(|| value.to_owned());
            }
        }
    }
    Ok(info)
}

fn parse(bytes: &[u8]) -> Result<Elf<'_>, ModuleError> {
    let elf = Elf::parse(bytes).map_err(|error| ModuleError::Elf(Box::new(error)))?;
    if elf.header.e_machine != EM_X86_64 || !elf.is_64 || elf.header.e_type != ET_REL {
        return Err(ModuleError::NotAModule("it is not a relocatable file for x86-64".to_owned()));
    }
    Ok(elf)
}

fn contents<'b>(bytes: &'b [u8], header: &goblin::elf::SectionHeader) -> Option<&'b [u8]> {
    let start = usize::try_from(header.sh_offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(header.sh_size).ok()?)?)
}

/// Links a module against the kernel at link addresses.
///
/// # Errors
/// [`ModuleError`].
pub fn open(path: &Path, bytes: &[u8], kernel: &KernelImage) -> Result<KernelImage, ModuleError> {
    let not = |reason: String| ModuleError::NotAModule(reason);
    let elf = parse(bytes)?;
    let info = info(bytes)?;
    let vermagic = info.get("vermagic").map_or("", String::as_str);
    let built_for = vermagic.split(' ').next().unwrap_or_default();
    if built_for != kernel.release() {
        let found = if built_for.is_empty() { "an unknown one".to_owned() } else { built_for.to_owned() };
        return Err(ModuleError::OtherKernel { expected: kernel.release().to_owned(), found });
    }
    let name = info.get("name").cloned().ok_or_else(|| not("its .modinfo has no name".to_owned()))?;
    let build_id = (elf.iter_note_sections(bytes, None).into_iter().flatten())
        .filter_map(Result::ok)
        .find(|note| note.n_type == NT_GNU_BUILD_ID && note.name == "GNU")
        .map(|note| note.desc.to_vec())
        .ok_or_else(|| not("it has no GNU build id".to_owned()))?;

    let mut layout = Layout::of(&elf, bytes)?;
    let names = Names::of(&elf, &layout, kernel)?;
    let relocs = layout.relocate(&elf, bytes, &names)?;
    let kept = layout.sections.iter().filter(|section| section.allocated);
    let id = ModuleId {
        name,
        build_id: build_id.clone(),
        sections: kept.map(|s| ModuleSection { name: s.name.clone(), address: s.address, size: s.size }).collect(),
        imports: names.imports,
    };
    let unique: BTreeSet<&str> = id.sections.iter().map(|section| section.name.as_str()).collect();
    if unique.len() != id.sections.len() {
        return Err(not("it has two sections of one name".to_owned()));
    }
    // What an address of the kernel is can be asked here as well, though not what it holds.
    layout
        .sections
        .extend(kernel.sections.iter().map(|section| ImageSection { has_contents: false, ..section.clone() }));
    let once = OnceLock::new();
    once.get_or_init(|| relocs);
    Ok(KernelImage {
        path: path.to_owned(),
        map: Contents::Owned(layout.bytes),
        sections: layout.sections,
        rela: HashMap::new(),
        entries: names.entries,
        symbols: SymbolDb::new(names.symbols),
        build_id,
        banner: kernel.banner().to_owned(),
        relocs: once,
        module: Some(id),
    })
}

/// Sections at their link addresses, by index of the file, and the contents of all of them.
struct Layout {
    sections: Vec<ImageSection>,
    bytes: Vec<u8>,
    end: u64,
}

impl Layout {
    fn of(elf: &Elf<'_>, file: &[u8]) -> Result<Self, ModuleError> {
        let mut layout = Self { sections: Vec::new(), bytes: Vec::new(), end: MODULE_SPACE.start };
        for header in &elf.section_headers {
            let name = elf.shdr_strtab.get_at(header.sh_name).unwrap_or_default().to_owned();
            let allocated = header.sh_flags & u64::from(SHF_ALLOC) != 0 && !NOT_KEPT.contains(&name.as_str());
            let mut section = ImageSection {
                name,
                address: 0,
                size: header.sh_size,
                file_offset: layout.bytes.len(),
                has_contents: allocated && header.sh_type != SHT_NOBITS,
                allocated,
            };
            if allocated {
                let too_large = || ModuleError::NotAModule(format!("its section {} is too large", section.name));
                let align = header.sh_addralign.max(MIN_ALIGN);
                if !align.is_power_of_two() {
                    return Err(ModuleError::NotAModule(format!("the alignment of {} is {align}", section.name)));
                }
                section.address = layout.end.checked_next_multiple_of(align).ok_or_else(too_large)?;
                // One byte apart, so that the end of a section is not the start of the next.
                let end = section.address.checked_add(section.size).and_then(|end| end.checked_add(1));
                layout.end = end.filter(|end| *end < MODULE_SPACE.end).ok_or_else(too_large)?;
                if section.has_contents {
                    layout.bytes.extend_from_slice(contents(file, header).ok_or_else(too_large)?);
                }
            }
            layout.sections.push(section);
        }
        Ok(layout)
    }

    /// Applies all relocations (`arch/x86/kernel/module.c`, `apply_relocate_add`); returns them by section.
    fn relocate(
        &mut self,
        elf: &Elf<'_>,
        file: &[u8],
        names: &Names,
    ) -> Result<HashMap<usize, Vec<ImageReloc>>, ModuleError> {
        let mut all: HashMap<usize, Vec<ImageReloc>> = HashMap::new();
        for header in elf.section_headers.iter().filter(|header| header.sh_type == SHT_RELA) {
            let index = header.sh_info as usize;
            let Some(section) = self.sections.get(index).filter(|section| section.has_contents) else { continue };
            let damaged =
                |what: &str| ModuleError::NotAModule(format!("{what} in the relocations of {}", section.name));
            let raw = contents(file, header).ok_or_else(|| damaged("no contents"))?;
            let relocs = all.entry(index).or_default();
            for entry in raw.chunks_exact(24) {
                let word = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("eight bytes"));
                let (offset, info, addend) = (word(0), word(8), word(16));
                let (symbol, target_kind) =
                    *names.entries.get((info >> 32) as usize).ok_or_else(|| damaged("an unknown symbol"))?;
                let address = section.address.wrapping_add(offset);
                let (number, target) = (info as u32, symbol.wrapping_add(addend));
                relocs.push(ImageReloc { address, kind: number, target, symbol, target_kind });
                if number == object::elf::R_X86_64_NONE.0 {
                    continue;
                }
                let kind = RelocKind::of_elf(number).ok_or_else(|| damaged(&format!("type {number}")))?;
                let value = if kind.is_pc_relative() { target.wrapping_sub(address) } else { target };
                let size = usize::from(kind.size());
                let start = usize::try_from(offset).ok().filter(|at| *at as u64 + size as u64 <= section.size);
                let start = section.file_offset + start.ok_or_else(|| damaged("a field outside"))?;
                self.bytes[start..start + size].copy_from_slice(&value.to_le_bytes()[..size]);
            }
            relocs.sort_by_key(|reloc| reloc.address);
        }
        Ok(all)
    }
}

/// Where the symbols of a module live.
struct Names {
    /// Address and kind of every entry of the file's symbol table.
    entries: Vec<(u64, AddressKind)>,
    /// The module's own symbols, then those of the kernel that other files see.
    symbols: Vec<KernelSymbol>,
    imports: Vec<ModuleImport>,
}

impl Names {
    fn of(elf: &Elf<'_>, layout: &Layout, kernel: &KernelImage) -> Result<Self, ModuleError> {
        let mut names = Self { entries: Vec::new(), symbols: Vec::new(), imports: Vec::new() };
        let mut file = None;
        for symbol in &elf.syms {
            let name = elf.strtab.get_at(symbol.st_name).unwrap_or_default();
            let (entry, defined) = names.place(&symbol, name, layout, kernel)?;
            names.entries.push(entry);
            match symbol.st_type() {
                STT_FILE => file = Some(name.to_owned()),
                STT_SECTION => {}
                kind if defined && !name.is_empty() => {
                    let global = symbol.st_bind() != STB_LOCAL;
                    names.symbols.push(KernelSymbol {
                        name: name.to_owned(),
                        address: entry.0,
                        size: symbol.st_size,
                        kind: SymbolKind::of_elf(kind),
                        global,
                        address_kind: entry.1,
                        file: if global { None } else { file.clone() },
                    });
                }
                _ => {}
            }
        }
        let imports = names.imports.iter().map(|import| KernelSymbol {
            name: import.name.clone(),
            address: import.address,
            size: 0,
            kind: SymbolKind::Label,
            global: true,
            address_kind: AddressKind::Image,
            file: None,
        });
        names.symbols.extend(imports.collect::<Vec<_>>());
        let own: BTreeSet<String> =
            names.symbols.iter().filter(|symbol| symbol.global).map(|symbol| symbol.name.clone()).collect();
        names.symbols.extend(kernel.symbols.iter().filter(|s| s.global && !own.contains(&s.name)).cloned());
        Ok(names)
    }

    /// Address and kind of a symbol, and whether the module defines it.
    fn place(
        &mut self,
        symbol: &Sym,
        name: &str,
        layout: &Layout,
        kernel: &KernelImage,
    ) -> Result<((u64, AddressKind), bool), ModuleError> {
        let not = |reason: String| Err(ModuleError::NotAModule(reason));
        const UNDEFINED: usize = SHN_UNDEF as usize;
        const ABSOLUTE: usize = SHN_ABS as usize;
        const COMMON: usize = SHN_COMMON as usize;
        match symbol.st_shndx {
            UNDEFINED if name.is_empty() => Ok(((0, AddressKind::Absolute), false)),
            UNDEFINED => {
                let mut found = kernel.symbols().lookup(name).filter(|symbol| symbol.global);
                match found.next() {
                    Some(first) if found.all(|other| other.address == first.address) => {
                        Ok(((first.address, first.address_kind), false))
                    }
                    Some(_) => not(format!("`{name}` names several places of the kernel")),
                    None if symbol.st_bind() == STB_WEAK => Ok(((0, AddressKind::Absolute), false)),
                    None => Ok(((self.import(name, layout), AddressKind::Image), false)),
                }
            }
            ABSOLUTE => Ok(((symbol.st_value, AddressKind::Absolute), symbol.st_type() != STT_FILE)),
            COMMON => not(format!("`{name}` is a common symbol")),
            index if index >= SHN_LORESERVE as usize => not(format!("`{name}` is in section {index:#x}")),
            index => match layout.sections.get(index) {
                Some(section) if section.allocated => {
                    Ok(((section.address.wrapping_add(symbol.st_value), AddressKind::Image), true))
                }
                _ => Ok(((0, AddressKind::Absolute), false)),
            },
        }
    }

    /// Link address of a symbol of another module.
    fn import(&mut self, name: &str, layout: &Layout) -> u64 {
        if let Some(known) = self.imports.iter().find(|import| import.name == name) {
            return known.address;
        }
        let first = layout.end.next_multiple_of(IMPORT_SPACING);
        let address = first + IMPORT_SPACING * self.imports.len() as u64;
        self.imports.push(ModuleImport { name: name.to_owned(), address });
        address
    }
}
