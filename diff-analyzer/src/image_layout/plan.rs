//! How to read the entries of an abbreviation: worked out once per unit, used for thousands of entries.
//!
//! Comes in: an abbreviation. Decided: whether all its attributes have a fixed size, and then where those that matter lie.
//! Goes out: [`Plan`]. Entries of other abbreviations are read attribute by attribute by gimli.

use super::entry::wanted;
use crate::dwarf_layout::sections::Slice;
use gimli::{Abbreviation, Abbreviations, AttributeSpecification, DwAt, DwTag, Format, UnitHeader, constants as dw};

/// Codes beyond this have no plan; compilers number abbreviations from 1 without gaps.
const MAX_CODE: u64 = 1 << 16;

/// A form of fixed size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fixed {
    One,
    Two,
    Four,
    Eight,
    /// `DW_FORM_strp` of 32 bits.
    Text,
    /// `DW_FORM_ref4`.
    Reference,
    /// The value is in the abbreviation.
    Constant(i64),
}

/// An attribute that matters, at a fixed place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Read {
    pub(super) what: DwAt,
    pub(super) at: u32,
    pub(super) form: Fixed,
}

/// What an entry is to layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A type.
    Type,
    /// A member, enumerator, bound or parameter, when a type is above it.
    Part,
    /// A function.
    Function,
    /// A block in a function.
    Block,
    /// A variable.
    Variable,
    /// Nothing.
    None,
}

fn role(tag: DwTag) -> Role {
    match tag {
        dw::DW_TAG_base_type
        | dw::DW_TAG_unspecified_type
        | dw::DW_TAG_typedef
        | dw::DW_TAG_structure_type
        | dw::DW_TAG_union_type
        | dw::DW_TAG_enumeration_type
        | dw::DW_TAG_array_type
        | dw::DW_TAG_pointer_type
        | dw::DW_TAG_subroutine_type
        | dw::DW_TAG_const_type
        | dw::DW_TAG_volatile_type
        | dw::DW_TAG_restrict_type
        | dw::DW_TAG_atomic_type => Role::Type,
        dw::DW_TAG_member
        | dw::DW_TAG_enumerator
        | dw::DW_TAG_subrange_type
        | dw::DW_TAG_formal_parameter
        | dw::DW_TAG_unspecified_parameters => Role::Part,
        dw::DW_TAG_subprogram => Role::Function,
        dw::DW_TAG_lexical_block => Role::Block,
        dw::DW_TAG_variable => Role::Variable,
        _ => Role::None,
    }
}

/// How entries of one abbreviation are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<'u> {
    pub(super) abbreviation: &'u Abbreviation,
    pub(super) tag: DwTag,
    pub(super) role: Role,
    pub(super) has_children: bool,
    /// Whether all entries start with their name; the rest is counted from behind it.
    pub(super) text_first: bool,
    /// Bytes of all attributes, when they are the same for all entries.
    pub(super) length: Option<u32>,
    /// Whether `reads` has all attributes that matter.
    pub(super) regular: bool,
    reads: (u32, u32),
    /// Where `DW_AT_sibling` lies.
    pub(super) sibling: Option<u32>,
}

/// The plans of one unit, made when they are first needed.
#[derive(Debug)]
pub(super) struct Plans<'u> {
    abbreviations: &'u Abbreviations,
    plans: Vec<Option<Plan<'u>>>,
    reads: Vec<Read>,
}

impl<'u> Plans<'u> {
    pub(super) fn new(abbreviations: &'u Abbreviations) -> Self {
        Self { abbreviations, plans: Vec::with_capacity(256), reads: Vec::with_capacity(1024) }
    }

    /// The plan for an abbreviation code.
    ///
    /// # Errors
    /// [`gimli::Error`] when the unit has no such abbreviation.
    #[inline]
    pub(super) fn get(&mut self, code: u64, header: &UnitHeader<Slice<'_>>) -> Result<Plan<'u>, gimli::Error> {
        if let Some(Some(plan)) = self.plans.get(code as usize) {
            return Ok(*plan);
        }
        self.make(code, header)
    }

    #[cold]
    fn make(&mut self, code: u64, header: &UnitHeader<Slice<'_>>) -> Result<Plan<'u>, gimli::Error> {
        let abbreviation = self.abbreviations.get(code).ok_or(gimli::Error::InvalidAbbreviationCode(code))?;
        let start = self.reads.len() as u32;
        let (mut length, mut regular, mut sibling) = (Some(0_u32), true, None);
        let name_in_place =
            |spec: &AttributeSpecification| spec.name() == dw::DW_AT_name && spec.form() == dw::DW_FORM_string;
        let text_first = abbreviation.attributes().first().is_some_and(name_in_place);
        for spec in abbreviation.attributes().iter().skip(usize::from(text_first)) {
            let at = length;
            let size = spec.size(header).and_then(|size| u32::try_from(size).ok());
            length = length.zip(size).and_then(|(length, size)| length.checked_add(size));
            let form = match spec.form() {
                dw::DW_FORM_data1 | dw::DW_FORM_flag => Some(Fixed::One),
                dw::DW_FORM_data2 => Some(Fixed::Two),
                dw::DW_FORM_data4 => Some(Fixed::Four),
                dw::DW_FORM_data8 => Some(Fixed::Eight),
                dw::DW_FORM_ref4 => Some(Fixed::Reference),
                dw::DW_FORM_strp if header.format() == Format::Dwarf32 => Some(Fixed::Text),
                dw::DW_FORM_flag_present => Some(Fixed::Constant(1)),
                dw::DW_FORM_implicit_const => spec.implicit_const_value().map(Fixed::Constant),
                _ => None,
            };
            if spec.name() == dw::DW_AT_sibling && form == Some(Fixed::Reference) {
                sibling = at;
            }
            if wanted(spec.name()) {
                match (at, form) {
                    (Some(at), Some(form)) => self.reads.push(Read { what: spec.name(), at, form }),
                    _ => regular = false,
                }
            }
        }
        let plan = Plan {
            abbreviation,
            tag: abbreviation.tag(),
            role: role(abbreviation.tag()),
            has_children: abbreviation.has_children(),
            text_first,
            length,
            regular: regular && length.is_some(),
            reads: (start, self.reads.len() as u32),
            sibling: sibling.filter(|_| length.is_some()),
        };
        if code < MAX_CODE {
            let place = code as usize;
            if self.plans.len() <= place {
                self.plans.resize(place + 1, None);
            }
            self.plans[place] = Some(plan);
        }
        Ok(plan)
    }

    /// The attributes that matter of a regular plan.
    #[inline]
    pub(super) fn reads(&self, plan: &Plan<'_>) -> &[Read] {
        &self.reads[plan.reads.0 as usize..plan.reads.1 as usize]
    }
}
