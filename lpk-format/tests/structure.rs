//! Files whose digest is right but whose structure is not: each is refused with the error of its cause.

mod common;

use common::{file, header, patched, patched_section, section};
use lpk_format::*;

/// Writes bytes into a section and expects one error.
macro_rules! refused {
    ($($name:ident: $section:literal [$at:expr] = $bytes:expr => $error:pat,)*) => {$(
        #[test]
        fn $name() {
            expect(&patched_section($section, $at, &$bytes), |error| matches!(error, $error), stringify!($error));
        }
    )*};
}

fn expect(bytes: &[u8], right: impl Fn(&ReadError) -> bool, name: &str) {
    match read(bytes) {
        Err(error) if right(&error) => {}
        other => panic!("expected {name}, got {other:?}"),
    }
}

use ReadError::{Record, Seal, Unsound};
use RecordError as R;

/// Offset of the second record of `.lucos.data`, and of the first step in it.
const DATA_2: usize = 48 + 8 + 16 + 24 + 8 + 4 * 8;
const STEPS: usize = 48 + 8 + 16;

refused! {
    // .lucos.functions: records of 64 bytes.
    old_address_outside: ".lucos.functions" [0] = [0; 8] => Unsound(Problem::OutsideImage { what: "old function", .. }),
    old_size_too_large: ".lucos.functions" [8] = [0xff; 4] => ReadError::FunctionPart { index: 0, section: ".lucos.expected", size: u32::MAX, .. },
    old_size_not_all: ".lucos.functions" [8] = [0x7f, 0, 0, 0] => ReadError::FunctionPart { index: 1, expected: 0x7f, .. },
    last_old_size_not_all: ".lucos.functions" [72] = [0x22, 0, 0, 0] => ReadError::Unused { section: ".lucos.expected", size: 0xa3, used: 0xa2 },
    expected_offset: ".lucos.functions" [12] = [1, 0, 0, 0] => ReadError::FunctionPart { offset: 1, expected: 0, .. },
    expected_offset_overflows: ".lucos.functions" [76] = [0xff; 4] => ReadError::FunctionPart { index: 1, offset: u32::MAX, .. },
    sites_offset: ".lucos.functions" [16] = [4, 0, 0, 0] => ReadError::FunctionPart { section: ".lucos.sites", offset: 4, .. },
    sites_size_too_large: ".lucos.functions" [20] = [0xff; 4] => ReadError::FunctionPart { section: ".lucos.sites", .. },
    sites_size_zero: ".lucos.functions" [20] = [0; 4] => Record { cause: R::Count { found: 0, announced: 14 }, .. },
    sites_count: ".lucos.functions" [24] = [0xff; 4] => Record { cause: R::Count { found: 14, announced: u32::MAX }, .. },
    new_offset_outside: ".lucos.functions" [28] = [0xf0, 0xff, 0xff, 0xff] => Unsound(Problem::NewRange { .. }),
    new_size_zero: ".lucos.functions" [32] = [0; 4] => Unsound(Problem::NewRange { size: 0, .. }),
    manifest_index: ".lucos.functions" [36] = [3, 0, 0, 0] => ReadError::ManifestIndex { index: 0, found: 3, count: 3 },
    manifest_other_entry: ".lucos.functions" [36] = [1, 0, 0, 0] => Unsound(Problem::ListedOtherwise(_)),
    jump_offset: ".lucos.functions" [40] = [5] => Unsound(Problem::JumpOffset { found: 5, .. }),
    function_reserved: ".lucos.functions" [63] = [1] => ReadError::NotCanonical { .. },
    function_reserved_behind_the_jump: ".lucos.functions" [41] = [1] => ReadError::NotCanonical { .. },
    returns_offset: ".lucos.functions" [44] = [8, 0, 0, 0] => ReadError::FunctionPart { section: ".lucos.returns", offset: 8, expected: 0, .. },
    returns_count_too_large: ".lucos.functions" [48] = [3, 0, 0, 0] => ReadError::FunctionPart { section: ".lucos.returns", size: 24, .. },
    returns_count_overflows: ".lucos.functions" [48] = [0xff; 4] => ReadError::FunctionPart { section: ".lucos.returns", size: u32::MAX, .. },
    returns_not_all: ".lucos.functions" [48] = [1, 0, 0, 0] => ReadError::FunctionPart { index: 1, section: ".lucos.returns", offset: 16, expected: 8, .. },

    // .lucos.returns: records of 8 bytes.
    return_old: ".lucos.returns" [0] = [0; 4] => Unsound(Problem::ReturnRange { old: 0, .. }),
    return_new: ".lucos.returns" [4] = [0xff; 4] => Unsound(Problem::ReturnRange { new: u32::MAX, .. }),
    return_order: ".lucos.returns" [8] = [9, 0, 0, 0] => Unsound(Problem::ReturnOrder { old: 9, .. }),

    // .lucos.modules: size, file.
    part_size: ".lucos.modules" [0] = [0xff; 8] => Record { cause: R::Truncated { index: 0, .. }, section: ".lucos.modules" },
    part_file: ".lucos.modules" [8] = [0] => ReadError::Part { index: 0, .. },

    // .lucos.sites: records of 16 bytes, forms behind.
    site_offset: ".lucos.sites" [0] = [0xff; 4] => Unsound(Problem::SiteRange { site: 0, .. }),
    site_len: ".lucos.sites" [4] = [6] => Unsound(Problem::SiteLength { len: 6, .. }),
    site_kind: ".lucos.sites" [5] = [14] => Record { cause: R::Kind { index: 0, kind: 14 }, section: ".lucos.sites" },
    site_kind_zero: ".lucos.sites" [21] = [0] => Record { cause: R::Kind { index: 1, kind: 0 }, .. },
    site_forms_of_another_kind: ".lucos.sites" [6] = [1] => Record { section: ".lucos.sites", .. },
    site_forms_too_many: ".lucos.sites" [5 * 16 + 6] = [255] => Record { cause: R::Truncated { index: 5, .. }, .. },
    site_forms_none: ".lucos.sites" [5 * 16 + 4] = [0] => Record { section: ".lucos.sites", .. },
    site_reserved: ".lucos.sites" [7] = [1] => ReadError::NotCanonical { .. },
    site_operand_unused: ".lucos.sites" [8] = [1] => ReadError::NotCanonical { .. },
    site_slot: ".lucos.sites" [4 * 16 + 8] = [0; 8] => Unsound(Problem::OutsideImage { .. }),

    // .lucos.fixups: records of 24 bytes.
    fixup_offset: ".lucos.fixups" [0] = [0xff; 4] => Unsound(Problem::FixupRange { index: 0, offset: u32::MAX, .. }),
    fixup_kind: ".lucos.fixups" [4] = [6] => Record { cause: R::Kind { index: 0, kind: 6 }, section: ".lucos.fixups" },
    fixup_len_unused: ".lucos.fixups" [5] = [5] => ReadError::NotCanonical { .. },
    fixup_flag: ".lucos.fixups" [6 * 24 + 7] = [2] => Record { cause: R::Flag { index: 6, value: 2 }, .. },
    fixup_replacement: ".lucos.fixups" [6 * 24 + 8] = [0xff; 4] => Unsound(Problem::FixupRange { index: 6, .. }),
    fixup_feature: ".lucos.fixups" [6 * 24 + 12] = [0xff; 2] => Unsound(Problem::Feature { feature: 0xffff, .. }),
    fixup_reserved: ".lucos.fixups" [6 * 24 + 14] = [1] => ReadError::NotCanonical { .. },

    // .lucos.tables: records of 12 bytes.
    table_kind: ".lucos.tables" [0] = [8] => Record { cause: R::Kind { index: 0, kind: 8 }, section: ".lucos.tables" },
    table_kind_zero: ".lucos.tables" [12] = [0] => Record { cause: R::Kind { index: 1, kind: 0 }, .. },
    table_reserved: ".lucos.tables" [3] = [1] => ReadError::NotCanonical { .. },
    table_offset: ".lucos.tables" [4] = [0xff; 4] => Unsound(Problem::TableRange { .. }),
    table_size: ".lucos.tables" [8] = [24] => Unsound(Problem::TableOverlap { .. }),

    // .lucos.data: a record of 48 bytes, a name and a unit padded to 8 bytes, then 24 initial bytes, two slides, four ranges.
    data_kind: ".lucos.data" [0] = [3] => Record { cause: R::Kind { index: 0, kind: 3 }, section: ".lucos.data" },
    data_section: ".lucos.data" [1] = [0] => Record { cause: R::Kind { index: 0, kind: 0 }, .. },
    data_flag: ".lucos.data" [2] = [2] => Record { cause: R::Flag { index: 0, value: 2 }, .. },
    data_reserved: ".lucos.data" [3] = [1] => ReadError::NotCanonical { .. },
    data_old_size: ".lucos.data" [4] = [0; 4] => Unsound(Problem::Datum { .. }),
    data_name_too_long: ".lucos.data" [24] = [0xff; 4] => Record { cause: R::Truncated { index: 0, .. }, .. },
    data_name_not_utf8: ".lucos.data" [48] = [0xff] => Record { cause: R::Text { index: 0 }, .. },
    data_name_padding: ".lucos.data" [54] = [1] => ReadError::NotCanonical { .. },
    data_steps_of_the_second: ".lucos.data" [DATA_2] = [1] => Record { .. },
    data_step_kind: ".lucos.data" [DATA_2 + STEPS + 16] = [7] => Record { cause: R::Kind { index: 1, kind: 7 }, .. },
    data_step_reserved: ".lucos.data" [DATA_2 + STEPS + 17] = [1] => ReadError::NotCanonical { .. },
    data_step_value_unused: ".lucos.data" [DATA_2 + STEPS + 24] = [1] => ReadError::NotCanonical { .. },

    // .lucos.objects: a record of 32 bytes, type and cache padded to 8 bytes, then offset, length and bytes of what is new.
    objects_address: ".lucos.objects" [0] = [0; 8] => Unsound(Problem::OutsideImage { what: "pointer to a cache", .. }),
    objects_old_size: ".lucos.objects" [8] = [0; 4] => Unsound(Problem::Objects { .. }),
    objects_type_too_long: ".lucos.objects" [16] = [0xff; 4] => Record { cause: R::Truncated { index: 0, .. }, section: ".lucos.objects" },
    objects_count: ".lucos.objects" [24] = [0xff; 4] => Record { section: ".lucos.objects", .. },
    objects_count_zero: ".lucos.objects" [24] = [0; 4] => Record { section: ".lucos.objects", .. },
    objects_reserved: ".lucos.objects" [28] = [1] => ReadError::NotCanonical { .. },
    objects_type_not_utf8: ".lucos.objects" [32] = [0xff] => Record { cause: R::Text { index: 0 }, .. },
    objects_type_padding: ".lucos.objects" [44] = [1] => ReadError::NotCanonical { .. },
    objects_added_outside: ".lucos.objects" [64] = [0xff; 4] => Unsound(Problem::Objects { .. }),
    objects_added_too_long: ".lucos.objects" [68] = [0xff; 4] => Record { cause: R::Truncated { index: 0, .. }, .. },
    objects_added_padding: ".lucos.objects" [76] = [1] => ReadError::NotCanonical { .. },

    // .lucos.hooks: records of 32 bytes, names behind; the sync hooks are the third and the fourth.
    hook_kind: ".lucos.hooks" [0] = [9] => Record { cause: R::Kind { index: 0, kind: 9 }, section: ".lucos.hooks" },
    hook_kind_zero: ".lucos.hooks" [32] = [0] => Record { cause: R::Kind { index: 1, kind: 0 }, .. },
    hook_section_unused: ".lucos.hooks" [1] = [1] => ReadError::NotCanonical { .. },
    hook_section: ".lucos.hooks" [65] = [5] => Record { cause: R::Kind { index: 2, kind: 5 }, .. },
    hook_section_none: ".lucos.hooks" [65] = [0] => Record { cause: R::Kind { index: 2, kind: 0 }, .. },
    hook_datum_in_the_code: ".lucos.hooks" [65] = [1] => Unsound(Problem::HookSubject { .. }),
    hook_reserved: ".lucos.hooks" [2] = [1] => ReadError::NotCanonical { .. },
    hook_offset: ".lucos.hooks" [4] = [0xff; 4] => Unsound(Problem::HookFunction { offset: u32::MAX, .. }),
    hook_address_unused: ".lucos.hooks" [8] = [1] => ReadError::NotCanonical { .. },
    hook_name_unused: ".lucos.hooks" [28] = [32] => ReadError::NotCanonical { .. },
    hook_name_too_long: ".lucos.hooks" [64 + 28] = [0xff; 4] => Record { cause: R::Truncated { index: 2, .. }, .. },
    hook_name_not_utf8: ".lucos.hooks" [64 + 32] = [0xff] => Record { cause: R::Text { index: 2 }, .. },
    hook_name_padding: ".lucos.hooks" [64 + 37] = [1] => ReadError::NotCanonical { .. },

    // The support object: its symbols stand behind the file symbol, number 12.
    file_symbol_value: ".symtab" [12 * 24 + 8] = [1] => ReadError::NotCanonical { .. },
    file_symbol_section: ".symtab" [12 * 24 + 6] = [0, 0] => ReadError::NotCanonical { .. },
    file_symbol_gone: ".symtab" [12 * 24 + 4] = [0] => ReadError::SymbolSection { .. },
    file_symbol_twice: ".symtab" [13 * 24 + 4] = [4] => ReadError::SymbolInfo { index: 13, info: 4, .. },
    support_symbol_in_the_payload: ".symtab" [13 * 24 + 6] = [1, 0] => ReadError::SymbolSection { index: 13, section: 1 },
    support_reloc_of_the_payload: ".rela.support.text" [12] = [11] => ReadError::RelocOtherSymbol { symbol: 11, first: 13, .. },
    payload_reloc_of_the_support: ".rela.text" [12] = [13] => Unsound(Problem::RelocSymbol { symbol: 12, count: 11, .. }),
    support_fixup: ".lucos.support.fixups" [0] = [0xff; 4] => Unsound(Problem::FixupRange { .. }),

    // .symtab: entries of 24 bytes, the first is null.
    null_symbol: ".symtab" [0] = [1] => ReadError::NoNullSymbol,
    symbol_name_outside: ".symtab" [24] = [0xff; 4] => ReadError::SymbolName { index: 1, offset: u32::MAX },
    symbol_name_in_the_middle: ".symtab" [24] = [2, 0, 0, 0] => ReadError::NotCanonical { .. },
    symbol_global: ".symtab" [28] = [0x12] => ReadError::SymbolInfo { index: 1, info: 0x12, .. },
    symbol_type: ".symtab" [28] = [1] => ReadError::SymbolInfo { info: 1, .. },
    symbol_visibility: ".symtab" [29] = [2] => ReadError::SymbolInfo { other: 2, .. },
    symbol_undefined: ".symtab" [30] = [0, 0] => ReadError::SymbolSection { index: 1, section: 0 },
    symbol_in_other_section: ".symtab" [30] = [16, 0] => ReadError::SymbolSection { section: 16, .. },
    symbol_in_the_support: ".symtab" [30] = [8, 0] => ReadError::SymbolSection { section: 8, .. },
    symbol_common: ".symtab" [30] = [0xf2, 0xff] => ReadError::SymbolSection { section: 0xfff2, .. },
    symbol_value: ".symtab" [32] = [0xff; 8] => ReadError::SymbolValue { value: u64::MAX, .. },
    symbol_kernel_value: ".symtab" [7 * 24 + 8] = [0xff; 8] => ReadError::SymbolValue { index: 7, .. },
    symbol_kernel_at_end: ".symtab" [7 * 24 + 8] = [0, 0, 0x83, 2, 0, 0, 0, 0] => Unsound(Problem::OutsideImage { .. }),
    symbol_size: ".symtab" [40] = [0xff; 8] => Unsound(Problem::SymbolRange { size: u64::MAX, .. }),
    string_not_utf8: ".strtab" [1] = [0xff] => ReadError::SymbolName { index: 1, offset: 1 },
    string_not_ended: ".strtab" [section(&file(), ".strtab").len() - 1] = *b"x" => ReadError::SymbolName { .. },
    string_unused: ".strtab" [0] = *b"x" => ReadError::NotCanonical { .. },

    // .rela.text: entries of 24 bytes.
    reloc_offset: ".rela.text" [0] = [0xff; 8] => ReadError::RelocOffset { index: 0, offset: u64::MAX, .. },
    reloc_offset_outside: ".rela.text" [0] = [0xff; 4] => Unsound(Problem::RelocRange { index: 0, .. }),
    reloc_order: ".rela.text" [0] = [12] => Unsound(Problem::RelocOrder { index: 1, .. }),
    reloc_kind: ".rela.text" [8] = [9] => ReadError::RelocKind { kind: 9, .. },
    reloc_null_symbol: ".rela.data" [12] = [0] => ReadError::RelocOtherSymbol { section: ".rela.data", index: 0, symbol: 0, first: 1 },
    reloc_symbol: ".rela.text" [12] = [0xff; 4] => Unsound(Problem::RelocSymbol { .. }),

    // Notes and JSON.
    note_owner: ".note.lucos.kernel" [12] = *b"X" => Record { cause: R::Note { index: 0, .. }, section: ".note.lucos.kernel" },
    note_type: ".note.lucos.kernel" [8] = [2] => Record { cause: R::Note { note_type: 0x4c02, expected: 0x4c01, .. }, .. },
    note_owner_size: ".note.lucos.kernel" [0] = [0xff; 4] => Record { cause: R::Truncated { .. }, .. },
    note_size: ".note.lucos.kernel" [4] = [0xff; 4] => Record { cause: R::Truncated { .. }, .. },
    note_text: ".note.lucos.kernel" [40 + 20] = [0xff] => Record { cause: R::Text { index: 1 }, .. },
    note_padding: ".note.lucos.kernel" [18] = [1] => ReadError::NotCanonical { .. },
    build_id_note_owner: ".note.gnu.build-id" [12] = *b"X" => ReadError::NotCanonical { .. },
    profile_not_json: ".lucos.profile" [0] = *b"[" => ReadError::Json { section: ".lucos.profile", .. },
    manifest_not_json: ".lucos.manifest" [0] = *b"x" => ReadError::Json { section: ".lucos.manifest", .. },
    manifest_other_field: ".lucos.manifest" [2] = *b"x" => ReadError::Json { section: ".lucos.manifest", .. },
    manifest_name: ".lucos.manifest" [9] = *b"/" => Unsound(Problem::Text { .. }),

}

#[test]
fn version_and_algorithm_are_told_before_the_digest() {
    for (at, right) in [
        (0, (|error| matches!(error, Seal(SealError::Version(99)))) as fn(&ReadError) -> bool),
        (4, |error| matches!(error, Seal(SealError::Algorithm(2)))),
    ] {
        let mut bytes = file();
        let start = section(&bytes, ".lucos.digest").start;
        bytes[start + at] = if at == 0 { 99 } else { 2 };
        expect(&bytes, right, "Version or Algorithm");
    }
}

#[test]
fn every_field_of_the_file_header_is_checked() {
    for (field, at, value) in [
        ("EI_OSABI", 7, 3),
        ("e_type", 16, 2),
        ("e_machine", 18, 3),
        ("e_version", 20, 2),
        ("e_entry", 24, 1),
        ("e_phoff", 32, 64),
        ("e_flags", 48, 1),
        ("e_ehsize", 52, 63),
        ("e_phentsize", 54, 56),
        ("e_phnum", 56, 1),
    ] {
        let bytes = patched(file(), at, &[value]);
        expect(&bytes, |error| matches!(error, ReadError::FileHeader { field: found, .. } if *found == field), field);
    }
    let mut more = file();
    more.extend([0; 64]);
    let bytes = patched(more, 60, &[SECTION_NAMES.len() as u8 + 1]);
    expect(&bytes, |error| matches!(error, ReadError::FileHeader { field: "e_shnum", .. }), "e_shnum");
    for at in 8..16 {
        let bytes = patched(file(), at, &[1]);
        expect(&bytes, |error| matches!(error, ReadError::NotCanonical { offset } if *offset == at), "NotCanonical");
    }
    for (at, value) in [(0, 0), (4, 1), (5, 2), (6, 0), (58, 63), (60, 20), (62, SECTION_NAMES.len() as u8)] {
        let mut bytes = file();
        bytes[at] = value;
        expect(&bytes, |error| matches!(error, Seal(SealError::NotElf(_))), "NotElf");
    }
}

/// Sections that may have any contents.
const DATA: [&str; 8] =
    [".text", ".rodata", ".data", ".bss", ".support.text", ".support.rodata", ".support.data", ".support.bss"];

#[test]
fn every_field_of_every_section_header_is_checked() {
    let fields = [
        ("sh_type", 4),
        ("sh_flags", 8),
        ("sh_addr", 16),
        ("sh_offset", 24),
        ("sh_size", 32),
        ("sh_link", 40),
        ("sh_info", 44),
        ("sh_addralign", 48),
        ("sh_entsize", 56),
    ];
    for section in SECTION_NAMES {
        for (field, at) in fields {
            let mut bytes = file();
            let at = header(&bytes, section) + at;
            bytes[at] ^= 0x20;
            // Without a string table or digest there is nothing to seal; the reader refuses all the same.
            let sealed = seal(&mut bytes).is_ok();
            let result = read(&bytes);
            let named = match &result {
                Err(ReadError::SectionHeader { section: found, field: named, .. }) => {
                    *found == section && *named == field
                }
                // A size that is wrong moves everything behind it, or cuts a record.
                Err(Seal(_)) => !sealed,
                Err(_) => field == "sh_size" || section == ".shstrtab" || field == "sh_type",
                // More of `.bss`, or contents that go on with the zeros behind them: another bundle.
                Ok(_) => DATA.contains(&section) && field == "sh_size",
            };
            let moved =
                field == "sh_size" && matches!(result, Err(ReadError::SectionHeader { field: "sh_offset", .. }));
            assert!(named || moved, "{field} of `{section}`: {:?}", result.err());
        }
    }
}

#[test]
fn a_section_of_another_name_is_refused() {
    let bytes = patched_section(".shstrtab", 2, b"T");
    expect(&bytes, |error| matches!(error, ReadError::SectionName { index: 1, .. }), "SectionName");
    let mut bytes = file();
    let at = section(&bytes, ".shstrtab");
    let place = at.start + bytes[at].windows(6).position(|name| name == b"digest").expect("the name is there");
    bytes[place] = b'D';
    expect(&bytes, |error| matches!(error, Seal(SealError::NoSection(".lucos.digest"))), "NoSection");
}

#[test]
fn sections_swapped_in_the_table_are_refused() {
    let good = file();
    let (rodata, data) = (header(&good, ".rodata"), header(&good, ".data"));
    let (first, second) = (good[rodata..rodata + 64].to_vec(), good[data..data + 64].to_vec());
    let bytes = patched(patched(good, rodata, &second), data, &first);
    expect(&bytes, |error| matches!(error, ReadError::SectionName { index: 2, .. }), "SectionName");
}

#[test]
fn bytes_between_sections_are_refused() {
    let good = file();
    let end = section(&good, ".text").end;
    assert!(end < section(&good, ".rodata").start, "the sample has a gap there");
    let bytes = patched(good, end, &[1]);
    expect(&bytes, |error| matches!(error, ReadError::NotCanonical { offset } if *offset == end), "NotCanonical");
}

#[test]
fn a_section_beyond_the_file_is_refused() {
    let good = file();
    let at = header(&good, ".lucos.manifest") + 32;
    let bytes = patched(good, at, &[0xff; 8]);
    expect(&bytes, |error| matches!(error, ReadError::SectionRange { section: ".lucos.manifest", .. }), "SectionRange");
}

#[test]
fn digest_and_id_must_not_overlap() {
    let mut bytes = file();
    let (digest, id) = (header(&bytes, ".lucos.digest"), header(&bytes, ".note.gnu.build-id"));
    let offset: [u8; 8] = bytes[digest + 24..digest + 32].try_into().expect("eight bytes");
    bytes[id + 24..id + 32].copy_from_slice(&offset);
    expect(&bytes, |error| matches!(error, Seal(SealError::Overlap { .. })), "Overlap");
}

#[test]
fn the_kernel_section_is_the_image_of_the_profile() {
    let good = file();
    let at = header(&good, ".lucos.kernel");
    for (field, at) in [("sh_addr", at + 16), ("sh_size", at + 32)] {
        let bytes = patched(good.clone(), at, &[1]);
        expect(
            &bytes,
            |error| matches!(error, ReadError::SectionHeader { field: found, .. } if *found == field),
            field,
        );
    }
}

#[test]
fn json_in_other_words_is_refused() {
    let good = write(&common::image_only()).expect("as sound as the sample");
    let text = String::from_utf8(good[section(&good, ".lucos.manifest")].to_vec()).expect("JSON is UTF-8");
    // As long as before, and the same to a JSON reader.
    let other = text.replacen("show-more", "\\u0073how", 1);
    assert_eq!(other.len(), text.len());
    let start = section(&good, ".lucos.manifest").start;
    let bytes = patched(good.clone(), start, other.as_bytes());
    let start = section(&good, ".lucos.manifest").start;
    let expected = start + text.find("show-more").expect("the name is there");
    expect(&bytes, |error| matches!(error, ReadError::NotCanonical { offset } if *offset == expected), "NotCanonical");
}
