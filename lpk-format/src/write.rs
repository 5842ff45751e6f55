//! The writer: a bundle becomes the bytes of its file.
//!
//! Comes in: a [`Bundle`]. Decided: whether it is sound; where everything lies follows from the format alone, so the
//! same bundle gives the same bytes. Goes out: an ELF file with its digest and id.

use std::collections::HashMap;

use object::LittleEndian as LE;
use object::elf;
use object::endian::{I64, U16, U32, U64};
use object::pod::bytes_of;

use crate::check::{self, Image, Problem};
use crate::digest::{SealError, seal};
use crate::layout::{
    self, ALGORITHM_SHA256, DIGEST_SIZE, FORMAT_VERSION, Part, SECTIONS, SUPPORT_FILE, align_up, index, limits,
};
use crate::records::{self, FunctionRecord};
use crate::{Bundle, Payload, SectionKind, Symbol};
use crate::{data, hooks, objects, returns};

/// Why a bundle was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The bundle breaks a rule of the format.
    #[error(transparent)]
    Unsound(#[from] Problem),
    /// A part in JSON could not be written.
    #[error("section `{section}` could not be written as JSON: {cause}")]
    Json {
        /// Its section.
        section: &'static str,
        /// What the encoder says.
        cause: serde_json::Error,
    },
    /// The file would be too large.
    #[error("the bundle would have {0} bytes, at most {max} are allowed; split the change", max = limits::FILE_SIZE)]
    TooLarge(u64),
    /// The digest could not be stored.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Writes a bundle. What is returned is read back by [`crate::read()`] as the same bundle.
pub fn write(bundle: &Bundle) -> Result<Vec<u8>, WriteError> {
    let image = check::check(bundle)?;
    let nothing = Payload::default();
    let support = bundle.support.as_ref().unwrap_or(&nothing);
    let names = StringTable::of(bundle);
    let mut contents: [Vec<u8>; index::COUNT] = std::array::from_fn(|_| Vec::new());
    for (part, payload, first_symbol) in [
        (Part::Payload, &bundle.payload, 1),
        // The null symbol, those of the payload, and the file symbol stand before it.
        (Part::Support, support, bundle.payload.symbols.len() as u32 + 2),
    ] {
        let sections = part.sections();
        contents[sections.text] = payload.text.clone();
        contents[sections.rodata] = payload.rodata.clone();
        contents[sections.data] = payload.data.clone();
        for (at, section) in sections.rela {
            contents[at] = encode_relocs(payload, section, first_symbol);
        }
        payload.fixups.iter().for_each(|fixup| records::encode_fixup(fixup, &mut contents[sections.fixups]));
    }
    bundle.payload.tables.iter().for_each(|table| records::encode_table(table, &mut contents[index::TABLES]));
    bundle.payload.changed.iter().for_each(|datum| data::encode(datum, &mut contents[index::CHANGED]));
    bundle.payload.objects.iter().for_each(|of| objects::encode(of, &mut contents[index::OBJECTS]));
    bundle.payload.hooks.iter().for_each(|hook| hooks::encode(hook, &mut contents[index::HOOKS]));
    [contents[index::FUNCTIONS], contents[index::EXPECTED], contents[index::SITES], contents[index::RETURNS]] =
        encode_functions(bundle);
    if let Some(module) = &bundle.module {
        contents[index::MODULE] = json(module, index::MODULE)?;
    }
    for part in &bundle.modules {
        records::encode_part(&write(part)?, &mut contents[index::MODULES]);
    }
    contents[index::PROFILE] = json(&bundle.profile, index::PROFILE)?;
    contents[index::MANIFEST] = json(&bundle.manifest, index::MANIFEST)?;
    contents[index::NOTE_KERNEL] = records::encode_kernel_notes(&bundle.kernel);
    records::encode_note(b"GNU\0", elf::NT_GNU_BUILD_ID.0, &[0; 20], &mut contents[index::NOTE_ID]);
    for word in [FORMAT_VERSION, ALGORITHM_SHA256] {
        contents[index::DIGEST].extend_from_slice(&word.to_le_bytes());
    }
    contents[index::DIGEST].resize(DIGEST_SIZE, 0);
    contents[index::SYMTAB] = encode_symbols(bundle, &names, image);
    contents[index::STRTAB] = names.bytes;
    contents[index::SHSTRTAB] = layout::section_names().0;
    let mut file = assemble(&contents, bundle, image)?;
    seal(&mut file)?;
    Ok(file)
}

/// Puts the sections behind the file header and the section headers behind the sections.
fn assemble(contents: &[Vec<u8>], bundle: &Bundle, image: Image<'_>) -> Result<Vec<u8>, WriteError> {
    let (_, name_offsets) = layout::section_names();
    let support_bss = bundle.support.as_ref().map_or(0, |support| support.bss_size);
    let mut file = vec![0; size_of::<elf::FileHeader64<LE>>()];
    let mut headers = Vec::new();
    for (at, (spec, content)) in SECTIONS.iter().zip(contents).enumerate() {
        if at != 0 {
            file.resize(align_up(file.len() as u64, spec.align) as usize, 0);
        }
        let (address, size) = match at {
            index::BSS => (0, u64::from(bundle.payload.bss_size)),
            index::SUPPORT_BSS => (0, u64::from(support_bss)),
            index::KERNEL => (image.text, image.end - image.text),
            _ => (0, content.len() as u64),
        };
        headers.push(elf::SectionHeader64 {
            sh_name: U32::new(LE, name_offsets[at]),
            sh_type: U32::new(LE, spec.kind),
            sh_flags: U64::new(LE, elf::SectionFlags(spec.flags)),
            sh_addr: U64::new(LE, address),
            sh_offset: U64::new(LE, if at == 0 { 0 } else { file.len() as u64 }),
            sh_size: U64::new(LE, size),
            sh_link: U32::new(LE, spec.link),
            sh_info: U32::new(
                LE,
                if at == index::SYMTAB { (content.len() / size_of::<elf::Sym64<LE>>()) as u32 } else { spec.info },
            ),
            sh_addralign: U64::new(LE, spec.align),
            sh_entsize: U64::new(LE, spec.entry_size),
        });
        file.extend_from_slice(content);
    }
    file.resize(align_up(file.len() as u64, 8) as usize, 0);
    let headers_at = file.len() as u64;
    headers.iter().for_each(|header| file.extend_from_slice(bytes_of(header)));
    if file.len() as u64 > limits::FILE_SIZE {
        return Err(WriteError::TooLarge(file.len() as u64));
    }
    let header = file_header(headers_at);
    file[..size_of_val(&header)].copy_from_slice(bytes_of(&header));
    Ok(file)
}

/// The file header of every bundle; only the place of the section headers differs.
pub(crate) fn file_header(headers_at: u64) -> elf::FileHeader64<LE> {
    elf::FileHeader64 {
        e_ident: elf::Ident {
            magic: elf::ELFMAG,
            class: elf::ELFCLASS64,
            data: elf::ELFDATA2LSB,
            version: elf::EV_CURRENT,
            os_abi: elf::ELFOSABI_NONE,
            abi_version: 0,
            padding: [0; 7],
        },
        e_type: U16::new(LE, elf::ET_REL),
        e_machine: U16::new(LE, elf::EM_X86_64),
        e_version: U32::new(LE, u32::from(elf::EV_CURRENT.0)),
        e_entry: U64::new(LE, 0),
        e_phoff: U64::new(LE, 0),
        e_shoff: U64::new(LE, headers_at),
        e_flags: U32::new(LE, elf::FileFlags(0)),
        e_ehsize: U16::new(LE, size_of::<elf::FileHeader64<LE>>() as u16),
        e_phentsize: U16::new(LE, 0),
        e_phnum: U16::new(LE, 0),
        e_shentsize: U16::new(LE, size_of::<elf::SectionHeader64<LE>>() as u16),
        e_shnum: U16::new(LE, index::COUNT as u16),
        e_shstrndx: U16::new(LE, elf::SymbolSection(index::SHSTRTAB as u16)),
    }
}

fn json<T: serde::Serialize>(value: &T, at: usize) -> Result<Vec<u8>, WriteError> {
    let section = SECTIONS[at].name;
    serde_json::to_vec(value).map_err(|cause| WriteError::Json { section, cause })
}

/// Contents of `.strtab`: names in the order of the symbols, each once.
struct StringTable<'bundle> {
    bytes: Vec<u8>,
    offsets: HashMap<&'bundle str, u32>,
}

impl<'bundle> StringTable<'bundle> {
    fn of(bundle: &'bundle Bundle) -> Self {
        let mut table = Self { bytes: vec![0], offsets: HashMap::from([("", 0)]) };
        bundle.payload.symbols.iter().for_each(|symbol| table.add(&symbol.name));
        if let Some(support) = &bundle.support {
            table.add(SUPPORT_FILE);
            support.symbols.iter().for_each(|symbol| table.add(&symbol.name));
        }
        table
    }

    fn add(&mut self, name: &'bundle str) {
        let end = self.bytes.len() as u32;
        self.offsets.entry(name).or_insert_with(|| {
            self.bytes.extend_from_slice(name.as_bytes());
            self.bytes.push(0);
            end
        });
    }
}

/// The null symbol, the symbols of the payload, and behind a file symbol those of the support object.
fn encode_symbols(bundle: &Bundle, names: &StringTable<'_>, image: Image<'_>) -> Vec<u8> {
    let entry = |name: &str, kind, (section, value), size| elf::Sym64 {
        st_name: U32::new(LE, names.offsets[name]),
        st_info: symbol_info(kind),
        st_other: elf::SymbolOther(0),
        st_shndx: U16::new(LE, elf::SymbolSection(section)),
        st_value: U64::new(LE, value),
        st_size: U64::new(LE, size),
    };
    let symbol = |part, symbol: &Symbol| {
        let kind = if symbol.function { elf::STT_FUNC } else { elf::STT_NOTYPE };
        entry(&symbol.name, kind, layout::symbol_position(part, symbol.place, image.text), symbol.size)
    };
    let mut entries: Vec<_> = bundle.payload.symbols.iter().map(|found| symbol(Part::Payload, found)).collect();
    if let Some(support) = &bundle.support {
        entries.push(entry(SUPPORT_FILE, elf::STT_FILE, (elf::SHN_ABS.0, 0), 0));
        entries.extend(support.symbols.iter().map(|found| symbol(Part::Support, found)));
    }
    let mut out = vec![0; size_of::<elf::Sym64<LE>>()];
    entries.iter().for_each(|entry| out.extend_from_slice(bytes_of(entry)));
    out
}

/// `st_info` of a local symbol (gABI "Symbol Table": binding in the upper half, type in the lower).
pub(crate) fn symbol_info(kind: elf::SymbolType) -> elf::SymbolInfo {
    elf::SymbolInfo((elf::STB_LOCAL.0 << 4) | kind.0)
}

/// The relocations of one section; `first_symbol` is the index in the file of the part's first symbol.
fn encode_relocs(payload: &Payload, section: SectionKind, first_symbol: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for reloc in payload.relocs.iter().filter(|reloc| reloc.section == section) {
        let kind = elf::RelocationType(reloc.kind.elf_type());
        out.extend_from_slice(bytes_of(&elf::Rela64 {
            r_offset: U64::new(LE, u64::from(reloc.offset)),
            r_info: elf::Rela64::r_info(LE, false, first_symbol + reloc.symbol, kind),
            r_addend: I64::new(LE, reloc.addend),
        }));
    }
    out
}

/// Contents of `.lucos.functions`, `.lucos.expected`, `.lucos.sites` and `.lucos.returns`.
fn encode_functions(bundle: &Bundle) -> [Vec<u8>; 4] {
    let by_address: HashMap<_, _> =
        bundle.manifest.functions.iter().enumerate().map(|(at, function)| (function.old_address, at as u32)).collect();
    let [mut records, mut expected, mut sites, mut pairs] = std::array::from_fn(|_| Vec::new());
    for function in &bundle.functions {
        let [expected_offset, sites_offset, returns_offset] = [&expected, &sites, &pairs].map(|part| part.len() as u32);
        expected.extend_from_slice(&function.expected);
        function.sites.iter().for_each(|site| records::encode_site(site, &mut sites));
        function.returns.iter().for_each(|pair| returns::encode(*pair, &mut pairs));
        FunctionRecord {
            old_address: function.old_address,
            old_size: function.expected.len() as u32,
            expected_offset,
            sites_offset,
            sites_size: sites.len() as u32 - sites_offset,
            sites_count: function.sites.len() as u32,
            new_offset: function.new_offset,
            new_size: function.new_size,
            manifest_index: by_address[&Some(function.old_address)],
            jump_offset: function.jump_offset,
            returns_offset,
            returns_count: function.returns.len() as u32,
        }
        .encode(&mut records);
    }
    [records, expected, sites, pairs]
}
