//! What is known of a unit before its entries are read.
//!
//! Comes in: the header of a unit. Decided: what its first entry says of the whole. Goes out: [`Unit`]. The table of source
//! lines, which gimli would read with it, is left alone: only types that differ need it.

use super::bytes::{load, uleb};
use super::name::Name;
use super::plan::Plans;
use crate::dwarf_layout::sections::Slice;
use gimli::{
    AttributeValue, DebugStrOffset, DebugStrOffsetsBase, DwLang, Dwarf, EndianSlice, EntriesRaw, LittleEndian,
    Section as _, UnitHeader, UnitType, constants as dw,
};

/// A unit.
pub(super) struct Unit<'a> {
    pub(super) header: UnitHeader<Slice<'a>>,
    /// Its source file, as recorded.
    pub(super) name: &'a [u8],
    pub(super) language: Option<DwLang>,
    /// Whether its types are in another file (`-gsplit-dwarf`).
    pub(super) is_split: bool,
    strings: DebugStrOffsetsBase,
}

impl<'a> Unit<'a> {
    /// Reads the table of abbreviations and the first entry of a unit.
    ///
    /// # Errors
    /// [`gimli::Error`] when they are malformed.
    pub(super) fn read(
        dwarf: &Dwarf<Slice<'a>>,
        header: UnitHeader<Slice<'a>>,
        plans: &mut Plans,
    ) -> Result<Self, gimli::Error> {
        let mut unit = Self {
            name: &[],
            language: None,
            is_split: matches!(header.type_(), UnitType::Skeleton(_)),
            strings: DebugStrOffsetsBase::default_for_encoding_and_file(header.encoding(), dwarf.file_type),
            header,
        };
        plans.read(dwarf.debug_abbrev.reader().slice(), &header)?;
        let root = header.root_offset();
        let bytes = header.range_from(root..)?.slice();
        let mut at = 0;
        let code = uleb(bytes, &mut at).filter(|&code| code != 0);
        let Some(code) = code else { return Ok(unit) };
        let specs = plans.specs(plans.get(code)?);
        let rest = EndianSlice::new(&bytes[at..], LittleEndian);
        let mut raw = EntriesRaw::new(rest, header.encoding(), &plans.no_abbreviations, root);
        let mut name = None;
        for &spec in specs {
            let attribute = raw.read_attribute(spec)?;
            match (attribute.name(), attribute.value()) {
                (dw::DW_AT_name, value) => name = Some(value),
                (dw::DW_AT_language, AttributeValue::Language(language)) => unit.language = Some(language),
                (dw::DW_AT_str_offsets_base, AttributeValue::DebugStrOffsetsBase(base)) => unit.strings = base,
                (dw::DW_AT_dwo_name | dw::DW_AT_GNU_dwo_name, _) => unit.is_split = true,
                _ => {}
            }
        }
        if let Some(name) = name {
            unit.name = unit.string(dwarf, name)?.slice();
        }
        Ok(unit)
    }

    /// The text of an attribute.
    fn string(&self, dwarf: &Dwarf<Slice<'a>>, value: AttributeValue<Slice<'a>>) -> Result<Slice<'a>, gimli::Error> {
        match value {
            AttributeValue::String(text) => Ok(text),
            AttributeValue::DebugStrRef(place) => dwarf.string(place),
            AttributeValue::DebugLineStrRef(place) => dwarf.line_string(place),
            AttributeValue::DebugStrOffsetsIndex(index) => dwarf.string(self.place(dwarf, index)?),
            _ => Err(gimli::Error::ExpectedStringAttributeValue),
        }
    }

    fn place(
        &self,
        dwarf: &Dwarf<Slice<'a>>,
        index: gimli::DebugStrOffsetsIndex,
    ) -> Result<DebugStrOffset, gimli::Error> {
        dwarf.debug_str_offsets.get_str_offset(self.header.format(), self.strings, index)
    }

    /// The name that an attribute is.
    ///
    /// # Errors
    /// [`gimli::Error`] when it is none, or lies outside its section.
    pub(super) fn name_of(
        &self,
        dwarf: &Dwarf<Slice<'a>>,
        value: AttributeValue<Slice<'a>>,
    ) -> Result<Name, gimli::Error> {
        let text = self.string(dwarf, value)?;
        Ok(match value {
            AttributeValue::DebugStrRef(place) => Name::in_strings(place.0),
            AttributeValue::DebugStrOffsetsIndex(index) => Name::in_strings(self.place(dwarf, index)?.0),
            AttributeValue::DebugLineStrRef(place) => Name::in_lines(place.0),
            _ if text.len() < 8 => Name::short(load(text.slice(), 0), text.len()),
            _ => Name::in_entries(text.offset_from(*dwarf.debug_info.reader())),
        })
    }
}
