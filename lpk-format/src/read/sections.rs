//! The headers of a bundle file.
//!
//! Comes in: bytes whose digest is right. Decided: whether file header and section headers are those of every bundle,
//! and whether the sections fill the file without gaps. Goes out: the bytes of each section.

use object::LittleEndian as LE;
use object::elf;
use object::read::elf::FileHeader;

use super::{ReadError, in_section};
use crate::check::{Image, Problem};
use crate::digest::SealError;
use crate::layout::{SECTIONS, align_up, index, limits};
use crate::records::RecordError;
use crate::write::file_header;

/// The sections of a file, in the order of [`SECTIONS`].
pub(super) struct Sections<'data> {
    headers: &'data [elf::SectionHeader64<LE>],
    contents: [&'data [u8]; index::COUNT],
}

impl<'data> Sections<'data> {
    /// Checks the headers.
    pub(super) fn of(bytes: &'data [u8]) -> Result<Self, ReadError> {
        let not_elf = |error: object::read::Error| SealError::NotElf(error.to_string());
        let header = elf::FileHeader64::<LE>::parse(bytes).map_err(not_elf)?;
        let table = header.sections(LE, bytes).map_err(not_elf)?;
        check_file_header(header)?;
        let headers = header.section_headers(LE, bytes).map_err(not_elf)?;
        let mut sections = Self { headers, contents: [&[]; index::COUNT] };
        let mut end = size_of::<elf::FileHeader64<LE>>() as u64;
        for (at, (spec, found)) in SECTIONS.iter().zip(headers).enumerate() {
            let name = table.section_name(LE, found).unwrap_or(b"(no name)");
            if name != spec.name.as_bytes() {
                let found = String::from_utf8_lossy(name).into_owned();
                return Err(ReadError::SectionName { index: at, found, expected: spec.name });
            }
            // Offsets follow from the sizes before: nothing hides between two sections.
            let offset = if at == 0 { 0 } else { align_up(end, spec.align) };
            sections.check_field(at, "sh_offset", found.sh_offset.get(LE), offset)?;
            sections.check_field(at, "sh_type", found.sh_type.get(LE).0.into(), spec.kind.0.into())?;
            sections.check_field(at, "sh_flags", found.sh_flags.get(LE).0, spec.flags)?;
            sections.check_field(at, "sh_addralign", found.sh_addralign.get(LE), spec.align)?;
            sections.check_field(at, "sh_entsize", found.sh_entsize.get(LE), spec.entry_size)?;
            sections.check_field(at, "sh_link", found.sh_link.get(LE).into(), spec.link.into())?;
            if at != index::SYMTAB {
                sections.check_field(at, "sh_info", found.sh_info.get(LE).into(), spec.info.into())?;
            }
            if at != index::KERNEL {
                sections.check_field(at, "sh_addr", found.sh_addr.get(LE), 0)?;
            }
            let size = found.sh_size.get(LE);
            if spec.in_file() {
                let outside = ReadError::SectionRange { section: spec.name, offset, size, file: bytes.len() };
                let range = offset.checked_add(size).filter(|end| *end <= bytes.len() as u64);
                let Some(range_end) = range else { return Err(outside) };
                sections.contents[at] = &bytes[offset as usize..range_end as usize];
                end = range_end;
            } else if at == 0 {
                sections.check_field(at, "sh_size", size, 0)?;
            } else {
                end = offset;
            }
        }
        let headers_at = align_up(end, 8);
        check_header_field("e_shoff", header.e_shoff.get(LE), headers_at)?;
        let expected = headers_at + size_of_val(headers) as u64;
        if bytes.len() as u64 != expected {
            return Err(ReadError::FileSize { found: bytes.len() as u64, expected });
        }
        Ok(sections)
    }

    /// Decodes the records that a section holds.
    pub(super) fn decode<T>(
        &self,
        at: usize,
        decode: impl FnOnce(&'data [u8]) -> Result<T, RecordError>,
    ) -> Result<T, ReadError> {
        decode(self.get(at)).map_err(in_section(at))
    }

    /// Contents of a section; empty for one without bytes in the file.
    pub(super) fn get(&self, at: usize) -> &'data [u8] {
        self.contents[at]
    }

    /// Offset of a section in the file.
    pub(super) fn start(&self, at: usize) -> usize {
        self.headers[at].sh_offset.get(LE) as usize
    }

    /// Size of `.bss` or `.support.bss`.
    pub(super) fn bss_size(&self, at: usize) -> Result<u32, ReadError> {
        let size = self.headers[at].sh_size.get(LE);
        let (found, max) = (usize::try_from(size).unwrap_or(usize::MAX), limits::BSS_SIZE as usize);
        let too_many = Problem::TooMany { what: "bytes of .bss", found, max };
        u32::try_from(size).map_err(|_| ReadError::Unsound(too_many))
    }

    /// Checks that `.lucos.kernel` is the kernel image of the profile.
    pub(super) fn check_kernel(&self, image: Image<'_>) -> Result<(), ReadError> {
        let header = &self.headers[index::KERNEL];
        self.check_field(index::KERNEL, "sh_addr", header.sh_addr.get(LE), image.text)?;
        self.check_field(index::KERNEL, "sh_size", header.sh_size.get(LE), image.end - image.text)
    }

    /// Checks `sh_info` of `.symtab`: all symbols are local.
    pub(super) fn check_symbol_count(&self, count: usize) -> Result<(), ReadError> {
        self.check_field(index::SYMTAB, "sh_info", self.headers[index::SYMTAB].sh_info.get(LE).into(), count as u64)
    }

    fn check_field(&self, at: usize, field: &'static str, found: u64, expected: u64) -> Result<(), ReadError> {
        if found == expected {
            Ok(())
        } else {
            Err(ReadError::SectionHeader { section: SECTIONS[at].name, field, found, expected })
        }
    }
}

fn check_header_field(field: &'static str, found: u64, expected: u64) -> Result<(), ReadError> {
    if found == expected { Ok(()) } else { Err(ReadError::FileHeader { field, found, expected }) }
}

fn check_file_header(found: &elf::FileHeader64<LE>) -> Result<(), ReadError> {
    let expected = file_header(0);
    let fields = |header: &elf::FileHeader64<LE>| {
        [
            ("EI_OSABI", u64::from(header.e_ident.os_abi.0)),
            ("e_type", header.e_type.get(LE).0.into()),
            ("e_machine", header.e_machine.get(LE).0.into()),
            ("e_version", header.e_version.get(LE).into()),
            ("e_entry", header.e_entry.get(LE)),
            ("e_phoff", header.e_phoff.get(LE)),
            ("e_flags", header.e_flags.get(LE).0.into()),
            ("e_ehsize", header.e_ehsize.get(LE).into()),
            ("e_phentsize", header.e_phentsize.get(LE).into()),
            ("e_phnum", header.e_phnum.get(LE).into()),
            ("e_shentsize", header.e_shentsize.get(LE).into()),
            ("e_shnum", header.e_shnum.get(LE).into()),
            ("e_shstrndx", header.e_shstrndx.get(LE).0.into()),
        ]
    };
    for ((field, found), (_, expected)) in fields(found).into_iter().zip(fields(&expected)) {
        check_header_field(field, found, expected)?;
    }
    Ok(())
}
