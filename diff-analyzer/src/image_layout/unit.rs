//! What is known of a unit before its entries are read.
//!
//! Comes in: the header of a unit. Decided: what its first entry says of the whole. Goes out: [`Unit`]. The table of source
//! lines, which gimli would read with it, is left alone: only types that differ need it.

use crate::dwarf_layout::sections::Slice;
use gimli::{Abbreviations, AttributeValue, DebugStrOffsetsBase, DwLang, Dwarf, UnitHeader, UnitType, constants as dw};
use std::sync::Arc;

/// A unit.
pub(super) struct Unit<'a> {
    pub(super) header: UnitHeader<Slice<'a>>,
    pub(super) abbreviations: Arc<Abbreviations>,
    /// Its source file, as recorded.
    pub(super) name: &'a [u8],
    pub(super) language: Option<DwLang>,
    /// Whether its types are in another file (`-gsplit-dwarf`).
    pub(super) is_split: bool,
    strings: DebugStrOffsetsBase,
}

impl<'a> Unit<'a> {
    /// Reads the first entry of a unit.
    ///
    /// # Errors
    /// [`gimli::Error`] when it is malformed.
    pub(super) fn read(dwarf: &Dwarf<Slice<'a>>, header: UnitHeader<Slice<'a>>) -> Result<Self, gimli::Error> {
        let mut unit = Self {
            abbreviations: dwarf.abbreviations(&header)?,
            name: &[],
            language: None,
            is_split: matches!(header.type_(), UnitType::Skeleton(_)),
            strings: DebugStrOffsetsBase::default_for_encoding_and_file(header.encoding(), dwarf.file_type),
            header,
        };
        let abbreviations = unit.abbreviations.clone();
        let mut root = header.entries_raw(&abbreviations, None)?;
        let mut name = None;
        if let Some(abbreviation) = root.read_abbreviation()? {
            for &spec in abbreviation.attributes() {
                let attribute = root.read_attribute(spec)?;
                match (attribute.name(), attribute.value()) {
                    (dw::DW_AT_name, value) => name = Some(value),
                    (dw::DW_AT_language, AttributeValue::Language(language)) => unit.language = Some(language),
                    (dw::DW_AT_str_offsets_base, AttributeValue::DebugStrOffsetsBase(base)) => unit.strings = base,
                    (dw::DW_AT_dwo_name | dw::DW_AT_GNU_dwo_name, _) => unit.is_split = true,
                    _ => {}
                }
            }
        }
        if let Some(name) = name {
            unit.name = unit.string(dwarf, name)?;
        }
        Ok(unit)
    }

    /// The text of an attribute.
    ///
    /// # Errors
    /// [`gimli::Error`] when it is none, or lies outside its section.
    pub(super) fn string(
        &self,
        dwarf: &Dwarf<Slice<'a>>,
        value: AttributeValue<Slice<'a>>,
    ) -> Result<&'a [u8], gimli::Error> {
        let text = match value {
            AttributeValue::String(text) => text,
            AttributeValue::DebugStrRef(place) => dwarf.string(place)?,
            AttributeValue::DebugLineStrRef(place) => dwarf.line_string(place)?,
            AttributeValue::DebugStrOffsetsIndex(index) => {
                let format = self.header.format();
                dwarf.string(dwarf.debug_str_offsets.get_str_offset(format, self.strings, index)?)?
            }
            _ => return Err(gimli::Error::ExpectedStringAttributeValue),
        };
        Ok(text.slice())
    }
}
