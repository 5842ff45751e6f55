//! Every rule of a sound bundle: breaking it is refused by the writer, with the error of that rule.

mod common;

use common::{END, MODULE, TEXT, sample};
use lpk_format::*;
use std::ops::Range;

/// Breaks one thing and expects the writer to name it.
macro_rules! refused {
    ($($name:ident: |$bundle:ident| $change:expr => $problem:pat,)*) => {$(
        #[test]
        fn $name() {
            let mut bundle = sample();
            {
                let $bundle = &mut bundle;
                $change;
            }
            match write(&bundle) {
                Err(WriteError::Unsound($problem)) => {}
                other => panic!("expected {}, got {other:?}", stringify!($problem)),
            }
        }
    )*};
}

fn text(offset: u32) -> Place {
    Place::Payload { section: SectionKind::Text, offset }
}

fn alternative(offset: u32, len: u8, replacement: u32, replacement_len: u8, feature: u16) -> Fixup {
    Fixup::Alternative { offset, len, replacement, replacement_len, feature, inverted: false }
}

/// Initial contents, slides, new and changed ranges.
type InPlace<'b> = (&'b mut Vec<u8>, &'b mut Vec<u32>, &'b mut Vec<Range<u32>>, &'b mut Vec<Range<u32>>);

/// Parts of the datum that is changed in place.
fn in_place(bundle: &mut Bundle) -> InPlace<'_> {
    match &mut bundle.payload.changed[0].change {
        DataChange::InPlace { initial, slides, added, edited, .. } => (initial, slides, added, edited),
        DataChange::Moved { .. } => panic!("the first changed datum of the sample stays in place"),
    }
}

/// Steps from the old to the new one of the datum that moves.
fn steps(bundle: &mut Bundle) -> &mut Vec<Step> {
    match &mut bundle.payload.changed[1].change {
        DataChange::Moved { to_new, .. } => to_new,
        DataChange::InPlace { .. } => panic!("the second changed datum of the sample moves"),
    }
}

fn datum(old_address: u64, old_size: u32, new_offset: u32, new_size: u32) -> HookSubject {
    let (name, section) = ("calls".to_owned(), SectionKind::Data);
    HookSubject::Datum { name, old_address, old_size, section, new_offset, new_size }
}

fn site(offset: u32, len: u8, kind: BootSiteKind) -> Vec<BootSite> {
    vec![BootSite { offset, len, kind }]
}

refused! {
    module_name_too_long: |b| b.modules[0].module.as_mut().expect("a part").name = "m".repeat(56) => Problem::Text { max: 55, .. },
    module_without_build_id: |b| b.modules[0].module.as_mut().expect("a part").build_id.clear() => Problem::BuildId(0),
    module_sections_share_bytes: |b| b.modules[0].module.as_mut().expect("a part").sections[0].size = 0x1001 => Problem::ModuleRange { .. },
    module_section_in_the_image: |b| b.modules[0].module.as_mut().expect("a part").sections[0].address = TEXT => Problem::ModuleRange { address: TEXT, .. },
    module_section_overflows: |b| b.modules[0].module.as_mut().expect("a part").sections[1].size = u64::MAX => Problem::ModuleRange { .. },
    module_section_twice: |b| b.modules[0].module.as_mut().expect("a part").sections[1].name = ".text".to_owned() => Problem::ModuleSectionTwice(_),
    module_import_in_a_section: |b| b.modules[0].module.as_mut().expect("a part").imports[0].address = MODULE => Problem::ModuleRange { address: MODULE, size: 1, .. },
    module_symbol_nowhere: |b| b.modules[0].payload.symbols[2].place = Place::Kernel(MODULE + 0x2011) => Problem::OutsideImage { .. },
    module_function_in_the_image: |b| { b.modules[0].functions[0].old_address = TEXT; b.modules[0].manifest.functions[0].old_address = Some(TEXT) } => Problem::OutsidePart { address: TEXT, .. },
    module_site_of_the_image: |b| b.modules[0].functions[0].sites[2].kind = BootSiteKind::Slide32 => Problem::SiteOfOther { site: 2, .. },
    module_site_in_the_payload: |b| b.modules[0].functions[0].sites[2].kind = BootSiteKind::Relocation { kind: RelocKind::Pc32, place: text(0), addend: 0 } => Problem::SiteOfOther { .. },
    module_site_of_another_length: |b| b.modules[0].functions[0].sites[3].len = 4 => Problem::SiteLength { min: 8, .. },
    image_site_of_a_module: |b| b.functions[0].sites = site(9, 4, BootSiteKind::Relocation { kind: RelocKind::Pc32, place: Place::Absolute(0), addend: 0 }) => Problem::SiteOfOther { .. },
    part_with_support: |b| b.modules[0].support = b.support.clone() => Problem::PartOfPart,
    part_with_parts: |b| { let part = b.modules[0].clone(); b.modules[0].modules.push(part) } => Problem::PartOfPart,
    part_without_module: |b| b.modules[0].module = None => Problem::PartWithoutModule,
    parts_out_of_order: |b| { let part = common::module_part(b, "aaa"); b.modules.push(part) } => Problem::PartOrder(_),
    part_twice: |b| { let part = b.modules[0].clone(); b.modules.insert(0, part) } => Problem::PartOrder(_),
    part_of_another_kernel: |b| b.modules[0].kernel.build_id[0] ^= 1 => Problem::PartOfAnother(_),
    part_of_another_diff: |b| b.modules[0].manifest.diff_sha256 = "f".repeat(64) => Problem::PartOfAnother(_),
    part_of_another_profile: |b| { b.modules[0].profile.constants.clear() } => Problem::PartOfAnother(_),

    build_id_too_short: |b| b.kernel.build_id.truncate(3) => Problem::BuildId(3),
    build_id_too_long: |b| b.kernel.build_id = vec![1; 65] => Problem::BuildId(65),
    release_empty: |b| b.kernel.release.clear() => Problem::Text { .. },
    release_too_long: |b| b.kernel.release = "6".repeat(65) => Problem::Text { max: 64, .. },
    banner_with_newline: |b| b.kernel.banner.push('\n') => Problem::Text { .. },
    image_unbounded: |b| b.profile.symbols.remove("_end") => Problem::NoImageSymbol("_end"),
    image_without_start: |b| b.profile.symbols.remove("_text") => Problem::NoImageSymbol("_text"),
    image_empty: |b| b.profile.symbols.insert("_end".to_owned(), TEXT) => Problem::Image { text: TEXT, end: TEXT },
    image_too_large: |b| b.profile.symbols.insert("_end".to_owned(), TEXT + (1 << 30) + 1) => Problem::Image { .. },
    bss_too_large: |b| b.payload.bss_size = limits::BSS_SIZE + 1 => Problem::TooMany { what: "bytes of .bss", .. },
    contents_too_large: |b| b.payload.data.resize(limits::FILE_SIZE as usize, 0) => Problem::TooLarge(_),

    symbol_with_zero_byte: |b| b.payload.symbols[6].name.push('\0') => Problem::SymbolName { index: 6, .. },
    symbol_behind_section: |b| b.payload.symbols[5].size += 1 => Problem::SymbolRange { offset: 64, size: 4033, .. },
    symbol_size_overflows: |b| b.payload.symbols[5].size = u64::MAX => Problem::SymbolRange { size: u64::MAX, .. },
    symbol_below_image: |b| b.payload.symbols[6].place = Place::Kernel(TEXT - 1) => Problem::OutsideImage { .. },
    symbol_at_end_of_image: |b| b.payload.symbols[6].place = Place::Kernel(END) => Problem::OutsideImage { address: END, .. },
    function_in_data: |b| b.payload.symbols[4].function = true => Problem::FunctionNotInText { .. },

    reloc_in_bss: |b| b.payload.relocs[7].section = SectionKind::Bss => Problem::RelocInBss { index: 7, .. },
    reloc_behind_section: |b| b.payload.relocs[9].offset = 161 => Problem::RelocRange { index: 9, offset: 161, .. },
    reloc_offset_overflows: |b| b.payload.relocs[9].offset = u32::MAX => Problem::RelocRange { .. },
    reloc_without_symbol: |b| b.payload.relocs[0].symbol = 11 => Problem::RelocSymbol { symbol: 11, count: 11, .. },
    relocs_out_of_order: |b| b.payload.relocs.swap(0, 1) => Problem::RelocOrder { index: 1, .. },
    reloc_sections_out_of_order: |b| b.payload.relocs.swap(4, 5) => Problem::RelocOrder { index: 5, .. },
    relocs_share_bytes: |b| b.payload.relocs[7].offset = 7 => Problem::RelocOrder { index: 7, offset: 7, .. },
    reloc_twice: |b| { let r = b.payload.relocs[0]; b.payload.relocs.insert(0, r) } => Problem::RelocOrder { index: 1, .. },

    fixup_behind_text: |b| b.payload.fixups = vec![Fixup::Return { offset: 0x54 }] => Problem::FixupRange { size: 5, .. },
    fixup_offset_overflows: |b| b.payload.fixups = vec![Fixup::Retpoline { offset: u32::MAX }] => Problem::FixupRange { .. },
    fixup_too_short: |b| b.payload.fixups[1] = Fixup::Paravirt { offset: 0x24, len: 4, slot: TEXT } => Problem::FixupLength { len: 4, min: 5, .. },
    fixup_empty: |b| b.payload.fixups[6] = alternative(0x30, 0, 0x50, 0, 1) => Problem::FixupLength { len: 0, .. },
    constant_of_other_size: |b| b.payload.fixups[4] = Fixup::Constant { offset: 0x44, len: 4, variable: TEXT } => Problem::ConstantSize { index: 4, len: 4 },
    constant_outside: |b| b.payload.fixups[4] = Fixup::Constant { offset: 0x44, len: 8, variable: END - 7 } => Problem::OutsideImage { size: 8, .. },
    fixup_slot_outside: |b| b.payload.fixups[1] = Fixup::Paravirt { offset: 0x24, len: 6, slot: END - 7 } => Problem::OutsideImage { size: 8, .. },
    fixups_out_of_order: |b| b.payload.fixups.swap(0, 1) => Problem::FixupOrder { index: 1, .. },
    fixups_share_bytes: |b| b.payload.fixups[2] = Fixup::Retpoline { offset: 0x2a } => Problem::FixupOrder { index: 2, .. },
    alternatives_not_last: |b| b.payload.fixups.swap(3, 4) => Problem::FixupOrder { index: 4, .. },
    alternatives_share_bytes: |b| b.payload.fixups[7] = alternative(0x31, 4, 0x50, 3, 1) => Problem::FixupOrder { index: 7, .. },
    alternatives_of_one_place_differ: |b| b.payload.fixups[7] = alternative(0x30, 6, 0x50, 3, 1) => Problem::FixupOrder { .. },
    replacement_too_long: |b| b.payload.fixups[7] = alternative(0x30, 5, 0x50, 6, 1) => Problem::ReplacementLength { .. },
    replacement_behind_text: |b| b.payload.fixups[7] = alternative(0x30, 5, 0x57, 3, 1) => Problem::FixupRange { size: 3, .. },
    replacement_in_place: |b| b.payload.fixups[7] = alternative(0x30, 5, 0x34, 3, 1) => Problem::ReplacementOverlap { .. },
    feature_with_flag: |b| b.payload.fixups[7] = alternative(0x30, 5, 0x50, 3, 0x8001) => Problem::Feature { .. },

    tables_out_of_order: |b| b.payload.tables.swap(0, 1) => Problem::TableOrder { kind: TableKind::Exceptions },
    table_twice: |b| { let t = b.payload.tables[5]; b.payload.tables.push(t) } => Problem::TableOrder { .. },
    table_empty: |b| b.payload.tables[0].size = 0 => Problem::TableRange { size: 0, .. },
    table_unaligned: |b| b.payload.tables[2].offset = 60 => Problem::TableRange { offset: 60, align: 8, .. },
    table_behind_data: |b| b.payload.tables[6].offset = 168 => Problem::TableRange { offset: 168, .. },
    table_offset_overflows: |b| b.payload.tables[5].offset = u32::MAX - 7 => Problem::TableRange { .. },
    table_ends_inside_an_entry: |b| b.payload.tables[0].size = 13 => Problem::TableEntries { size: 13, entry: 12, .. },
    table_of_unknown_entries: |b| b.profile.sizes.remove("bug_entry") => Problem::NoEntrySize { name: "bug_entry", .. },
    table_of_entries_without_size: |b| b.profile.sizes.insert("bug_entry".to_owned(), 0) => Problem::TableEntries { entry: 0, .. },
    unwind_entries_missing: |b| b.payload.tables.remove(4) => Problem::OrcCount { ips: 2, orcs: 0 },
    unwind_entries_too_many: |b| b.payload.tables[4] = Table { size: 18, ..b.payload.tables[4] } => Problem::OrcCount { orcs: 3, .. },
    tables_share_bytes: |b| b.payload.tables[5].offset = 96 => Problem::TableOverlap { kind: TableKind::DynamicDebug, offset: 96 },
    support_with_tables: |b| b.support.as_mut().expect("the sample has one").tables.push(Table { kind: TableKind::Bugs, offset: 0, size: 12 }) => Problem::SupportTables(1),
    support_symbol_behind_section: |b| b.support.as_mut().expect("the sample has one").symbols[0].size = 17 => Problem::SymbolRange { size: 17, .. },
    support_names_symbols_of_the_payload: |b| b.support.as_mut().expect("the sample has one").relocs[0].symbol = 4 => Problem::RelocSymbol { symbol: 4, count: 4, .. },
    support_bss_too_large: |b| b.support.as_mut().expect("the sample has one").bss_size = u32::MAX => Problem::TooMany { what: "bytes of .bss", .. },

    functions_out_of_order: |b| b.functions.swap(0, 1) => Problem::FunctionOrder { .. },
    functions_share_bytes: |b| b.functions[1].old_address -= 1 => Problem::FunctionOrder { .. },
    function_below_image: |b| b.functions[0].old_address = TEXT - 1 => Problem::OutsideImage { .. },
    function_behind_image: |b| b.functions[1].old_address = END - 0x22 => Problem::OutsideImage { size: 0x23, .. },
    function_address_overflows: |b| b.functions[1].old_address = u64::MAX => Problem::OutsideImage { .. },
    jump_at_endbr: |b| b.functions[0].jump_offset = 0 => Problem::JumpOffset { found: 0, expected: 4, .. },
    jump_inside: |b| b.functions[1].jump_offset = 4 => Problem::JumpOffset { found: 4, expected: 0, .. },
    jump_anywhere: |b| b.functions[1].jump_offset = 7 => Problem::JumpOffset { found: 7, .. },
    no_room_for_jump: |b| b.functions[1].expected.truncate(4) => Problem::TooShort { len: 4, needed: 5, .. },
    no_room_for_jump_behind_endbr: |b| b.functions[0].expected.truncate(8) => Problem::TooShort { len: 8, needed: 9, .. },
    new_function_empty: |b| b.functions[0].new_size = 0 => Problem::NewRange { .. },
    new_function_behind_text: |b| b.functions[0].new_offset = 0x50 => Problem::NewRange { .. },
    new_function_overflows: |b| b.functions[0].new_offset = u32::MAX => Problem::NewRange { .. },
    new_function_unaligned: |b| b.functions[0].new_offset = 8 => Problem::NewAlignment { .. },
    new_function_without_symbol: |b| b.payload.symbols[0].place = text(1) => Problem::NoSymbol { offset: 0, .. },
    return_at_the_start: |b| b.functions[0].returns[0].old = 0 => Problem::ReturnRange { old: 0, .. },
    return_outside: |b| b.functions[0].returns[1].old = 0x81 => Problem::ReturnRange { old: 0x81, .. },
    return_to_the_start: |b| b.functions[0].returns[0].new = 0 => Problem::ReturnRange { new: 0, .. },
    return_to_outside: |b| b.functions[0].returns[0].new = 22 => Problem::ReturnRange { new: 22, new_size: 21, .. },
    returns_out_of_order: |b| b.functions[0].returns.swap(0, 1) => Problem::ReturnOrder { old: 9, .. },
    return_twice: |b| { let pair = ReturnPair { new: 7, ..b.functions[0].returns[0] }; b.functions[0].returns.insert(1, pair) } => Problem::ReturnOrder { .. },
    returns_to_one_place: |b| b.functions[0].returns[1].new = 16 => Problem::ReturnTwice { new: 16, .. },
    returns_too_many: |b| b.functions[0].returns = vec![ReturnPair { old: 1, new: 1 }; limits::RETURNS + 1] => Problem::TooMany { what: "return points of one function", .. },
    new_function_symbol_is_data: |b| b.payload.symbols[0].function = false => Problem::NoSymbol { .. },
    new_function_symbol_of_other_size: |b| b.payload.symbols[0].size = 20 => Problem::NoSymbol { size: 21, .. },

    site_behind_function: |b| b.functions[1].sites = site(0x1f, 5, BootSiteKind::Return) => Problem::SiteRange { .. },
    site_offset_overflows: |b| b.functions[1].sites = site(u32::MAX, 5, BootSiteKind::Return) => Problem::SiteRange { .. },
    site_wrong_length: |b| b.functions[1].sites = site(0, 5, BootSiteKind::Slide32) => Problem::SiteLength { min: 4, max: 4, .. },
    site_empty: |b| b.functions[1].sites = site(0, 0, BootSiteKind::Alternative { forms: vec![vec![]] }) => Problem::SiteLength { len: 0, .. },
    sites_out_of_order: |b| b.functions[0].sites.swap(0, 1) => Problem::SiteOrder { site: 1, .. },
    sites_share_bytes: |b| b.functions[0].sites[6].offset = 36 => Problem::SiteOverlap { offset: 36, len: 4, .. },
    site_constant_of_other_size: |b| b.functions[1].sites = site(0, 4, BootSiteKind::Constant { variable: TEXT }) => Problem::ConstantSize { len: 4, .. },
    site_constant_outside: |b| b.functions[1].sites = site(0, 1, BootSiteKind::Constant { variable: END }) => Problem::OutsideImage { .. },
    module_site_of_a_constant: |b| { let site = &mut b.modules[0].functions[0].sites[2]; (site.len, site.kind) = (1, BootSiteKind::Constant { variable: TEXT }) } => Problem::SiteOfOther { site: 2, .. },
    site_slot_outside: |b| b.functions[1].sites = site(0, 6, BootSiteKind::Paravirt { slot: 0 }) => Problem::OutsideImage { .. },
    site_key_outside: |b| b.functions[1].sites = site(0, 5, BootSiteKind::StaticCall { key: END - 4 }) => Problem::OutsideImage { .. },
    site_target_outside: |b| b.functions[1].sites = site(0, 5, BootSiteKind::JumpLabel { target: END }) => Problem::OutsideImage { .. },
    form_of_other_length: |b| b.functions[1].sites = site(0, 3, BootSiteKind::Alternative { forms: vec![vec![0; 3], vec![0; 2]] }) => Problem::FormLength { found: 2, len: 3, .. },
    no_forms: |b| b.functions[1].sites = site(0, 3, BootSiteKind::Alternative { forms: vec![] }) => Problem::NoForms { site: 0, .. },
    too_many_forms: |b| b.functions[1].sites = site(0, 1, BootSiteKind::Alternative { forms: vec![vec![0]; 256] }) => Problem::TooMany { found: 256, .. },

    data_of_type1: |b| { b.payload.hooks.clear(); b.manifest.update_type = UpdateType::Type1 } => Problem::DataOfType1(2),
    data_of_the_support: |b| b.support.as_mut().expect("the sample has one").changed.push(b.payload.changed[0].clone()) => Problem::SupportData(1),
    data_out_of_order: |b| b.payload.changed.swap(0, 1) => Problem::DataOrder { .. },
    data_overlap: |b| b.payload.changed[1].old_address -= 1 => Problem::DataOrder { .. },
    data_outside: |b| b.payload.changed[1].old_address = END - 23 => Problem::OutsideImage { what: "changed datum", .. },
    data_without_a_name: |b| b.payload.changed[0].name.clear() => Problem::Text { .. },
    data_with_a_bad_unit: |b| b.payload.changed[0].unit.push('\n') => Problem::Text { .. },
    data_in_the_code: |b| b.payload.changed[0].section = SectionKind::Text => Problem::Datum { .. },
    data_empty: |b| b.payload.changed[0].new_size = 0 => Problem::Datum { .. },
    data_behind_its_section: |b| b.payload.changed[0].new_offset = 161 => Problem::Datum { .. },
    data_overflows: |b| b.payload.changed[0].new_offset = u32::MAX => Problem::Datum { .. },
    data_of_another_size: |b| in_place(b).0.truncate(23) => Problem::Datum { .. },
    data_slide_outside: |b| in_place(b).1[1] = 17 => Problem::Datum { .. },
    data_slides_overlap: |b| in_place(b).1[0] = 9 => Problem::Datum { .. },
    data_nothing_written: |b| { in_place(b).2.clear(); in_place(b).3.clear() } => Problem::Datum { .. },
    data_added_outside: |b| in_place(b).2[1].end = 33 => Problem::Datum { .. },
    data_edited_behind_the_old: |b| in_place(b).3.push(24..25) => Problem::Datum { .. },
    data_empty_range: |b| in_place(b).3[0].end = 0 => Problem::Datum { .. },
    data_both_new_and_changed: |b| in_place(b).3[1].end = 13 => Problem::Datum { .. },
    step_outside: |b| steps(b)[1].from = 24 * 8 - 15 => Problem::Datum { .. },
    step_target_outside: |b| steps(b)[3].to = 32 * 8 - 7 => Problem::Datum { .. },
    steps_overlap: |b| steps(b)[1].to = 6 => Problem::Datum { .. },
    step_copy_of_another_size: |b| steps(b)[0].to_size = 2 => Problem::Datum { .. },
    step_widens_to_less: |b| steps(b)[1].from_size = 64 => Problem::Datum { .. },
    step_of_no_bits: |b| { steps(b)[0].from_size = 0; steps(b)[0].to_size = 0 } => Problem::Datum { .. },
    step_constant_too_large: |b| steps(b)[3].how = StepKind::Constant(0x100) => Problem::Datum { .. },

    objects_of_type1: |b| { b.payload.changed.clear(); b.payload.hooks.clear(); b.manifest.update_type = UpdateType::Type1 } => Problem::ObjectsOfType1(2),
    objects_of_the_support: |b| b.support.as_mut().expect("the sample has one").objects.push(b.payload.objects[0].clone()) => Problem::SupportObjects(1),
    objects_out_of_order: |b| b.payload.objects.swap(0, 1) => Problem::ObjectsOrder { .. },
    objects_of_one_cache: |b| b.payload.objects[1].cache_address -= 8 => Problem::ObjectsOrder { .. },
    objects_of_one_cache_in_two_parts: |b| b.modules[0].payload.objects[0].cache_address = b.payload.objects[0].cache_address => Problem::ObjectsTwice(_),
    objects_outside: |b| b.payload.objects[1].cache_address = END - 7 => Problem::OutsideImage { what: "pointer to a cache", .. },
    objects_without_a_type: |b| b.payload.objects[0].type_name.clear() => Problem::Text { .. },
    objects_with_a_bad_cache: |b| b.payload.objects[0].cache.push('\n') => Problem::Text { .. },
    objects_empty: |b| b.payload.objects[0].old_size = 0 => Problem::Objects { .. },
    objects_become_smaller: |b| b.payload.objects[1].new_size = 39 => Problem::Objects { .. },
    objects_too_large: |b| b.payload.objects[0].new_size = 8193 => Problem::Objects { .. },
    objects_nothing_new: |b| b.payload.objects[0].added.clear() => Problem::Objects { .. },
    objects_added_nothing: |b| b.payload.objects[0].added[0].bytes.clear() => Problem::Objects { .. },
    objects_added_twice: |b| b.payload.objects[0].added[0].offset = 33 => Problem::Objects { .. },
    objects_added_outside: |b| b.payload.objects[0].added[1].offset = 37 => Problem::Objects { .. },
    objects_added_overflows: |b| b.payload.objects[0].added[1].offset = u32::MAX => Problem::Objects { .. },
    objects_too_many: |b| b.payload.objects = vec![b.payload.objects[0].clone(); 4097] => Problem::TooMany { what: "types of objects", .. },

    hooks_of_type1: |b| { b.payload.objects.clear(); b.payload.changed.clear(); b.manifest.update_type = UpdateType::Type1 } => Problem::HooksOfType1(8),
    hooks_of_the_support: |b| b.support.as_mut().expect("the sample has one").hooks.push(b.payload.hooks[0].clone()) => Problem::SupportHooks(1),
    hooks_out_of_order: |b| b.payload.hooks.swap(0, 1) => Problem::HookOrder { kind: HookKind::Pre, .. },
    hook_twice: |b| { let hook = b.payload.hooks[0].clone(); b.payload.hooks.insert(1, hook) } => Problem::HookOrder { kind: HookKind::Pre, .. },
    hook_inside_a_function: |b| b.payload.hooks[0].offset = 0x51 => Problem::HookFunction { offset: 0x51, .. },
    hook_outside: |b| b.payload.hooks[0].offset = u32::MAX => Problem::HookFunction { .. },
    hook_of_another_subject: |b| b.payload.hooks[0].subject = b.payload.hooks[4].subject.clone() => Problem::HookSubject { kind: HookKind::Pre, .. },
    hook_of_no_function: |b| b.payload.hooks[4].subject = HookSubject::Function { name: "show".to_owned(), old_address: TEXT + 0x1080 } => Problem::HookSubject { kind: HookKind::Transition, .. },
    hook_of_another_name: |b| b.payload.hooks[4].subject = HookSubject::Function { name: "count".to_owned(), old_address: TEXT + 0x1000 } => Problem::HookSubject { .. },
    hook_datum_outside: |b| b.payload.hooks[2].subject = datum(END, 1, 8, 8) => Problem::OutsideImage { what: "datum of a hook", .. },
    hook_datum_without_old: |b| b.payload.hooks[2].subject = datum(TEXT, 0, 8, 8) => Problem::HookSubject { kind: HookKind::SyncToNew, .. },
    hook_datum_without_new: |b| b.payload.hooks[2].subject = datum(TEXT, 1, 8, 0) => Problem::HookSubject { .. },
    hook_datum_behind_its_section: |b| b.payload.hooks[2].subject = datum(TEXT, 1, 161, 8) => Problem::HookSubject { .. },
    hook_datum_overflows: |b| b.payload.hooks[2].subject = datum(TEXT, 1, u32::MAX, 8) => Problem::HookSubject { .. },
    hook_datum_with_a_bad_name: |b| if let HookSubject::Datum { name, .. } = &mut b.payload.hooks[2].subject { name.push('\n') } => Problem::Text { .. },

    name_with_slash: |b| b.manifest.name = "../x".to_owned() => Problem::Text { .. },
    name_empty: |b| b.manifest.name.clear() => Problem::Text { .. },
    diff_digest_short: |b| b.manifest.diff_sha256.truncate(63) => Problem::DiffDigest(_),
    diff_digest_upper_case: |b| b.manifest.diff_sha256.make_ascii_uppercase() => Problem::DiffDigest(_),
    files_unsorted: |b| b.manifest.files.reverse() => Problem::FileOrder(_),
    file_twice: |b| { let f = b.manifest.files[1].clone(); b.manifest.files.push(f) } => Problem::FileOrder(_),
    old_code_outside: |b| b.manifest.left[0].size = u64::MAX => Problem::OutsideImage { what: "old code", .. },
    old_code_twice: |b| { let code = b.manifest.left[0].clone(); b.manifest.left.push(code) } => Problem::OldCodeOrder(_),
    old_code_without_name: |b| b.manifest.left[0].name.clear() => Problem::Text { .. },
    listed_twice: |b| { let f = b.manifest.functions[0].clone(); b.manifest.functions.push(f) } => Problem::ListedTwice(_),
    new_with_old_size: |b| b.manifest.functions[1].old_size = 1 => Problem::NewWithOldSize(_),
    not_listed: |b| b.manifest.functions.truncate(2) => Problem::NotListed(_),
    listed_with_other_name: |b| b.manifest.functions[0].name.push('x') => Problem::ListedOtherwise(_),
    listed_with_other_unit: |b| b.manifest.functions[0].unit.push('x') => Problem::ListedOtherwise(_),
    listed_with_other_old_size: |b| b.manifest.functions[0].old_size += 1 => Problem::ListedOtherwise(_),
    listed_with_other_new_size: |b| b.manifest.functions[0].new_size += 1 => Problem::ListedOtherwise(_),
    listed_only: |b| b.functions.truncate(1) => Problem::ListedOnly(_),
}

#[test]
fn what_a_rule_allows_is_written() {
    let mut bundle = sample();
    // Sites that touch, hold one another or share both ends.
    bundle.functions[1].sites = [
        site(0, 5, BootSiteKind::Return),
        site(5, 7, BootSiteKind::Paravirt { slot: END - 8 }),
        site(5, 30, BootSiteKind::Alternative { forms: vec![vec![0; 30]; 255] }),
        site(6, 4, BootSiteKind::Slide32),
    ]
    .concat();
    // A replacement of nothing, at the very end of the code.
    bundle.payload.fixups[7] = alternative(0x30, 5, 0x58, 0, 0x7fff);
    let bytes = write(&bundle).expect("nothing in it breaks a rule");
    assert_eq!(read(&bytes).expect("just written").bundle, bundle);
}
