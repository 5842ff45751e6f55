//! How to read the entries of an abbreviation: worked out once per table of abbreviations, used for thousands of entries.
//!
//! Comes in: a table of `.debug_abbrev`. Decided: whether all attributes of an abbreviation have a fixed size, but for one
//! expression, and then where those that matter lie. Goes out: [`Plan`]s. Entries of other abbreviations are read attribute by attribute by
//! gimli. gimli's own tables would do, but thousands of units have one each, and most of the time would go into them.

use super::bytes::{load, uleb};
use super::entry::wanted;
use crate::dwarf_layout::sections::Slice;
use gimli::{Abbreviations, AttributeSpecification, DwAt, DwForm, DwTag, Format, UnitHeader, constants as dw};
use std::collections::HashMap;

/// Attributes of simple plans have at most so many bytes.
const MAX_SIMPLE: usize = 24;

/// The attributes of a simple plan, and some bytes behind them.
pub(super) type Window = [u8; MAX_SIMPLE + 8];

/// A number that entries state in the same place, as many bytes of it as `mask` has; or the abbreviation does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    at: u32,
    mask: u64,
    add: u64,
}

impl Field {
    fn constant(value: u64) -> Self {
        Self { at: 0, mask: 0, add: value }
    }

    /// The number in the attributes of an entry with a simple plan.
    #[inline(always)]
    pub(super) fn within(self, window: &Window) -> u64 {
        let at = (self.at as usize).min(MAX_SIMPLE);
        let eight = window[at..at + 8].first_chunk().expect("a slice of eight bytes");
        (u64::from_le_bytes(*eight) & self.mask).wrapping_add(self.add)
    }

    /// The number in an entry whose attributes start at `start`.
    #[inline]
    pub(super) fn of(self, bytes: &[u8], start: usize) -> u64 {
        (load(bytes, start + self.at as usize) & self.mask).wrapping_add(self.add)
    }
}

/// A form of fixed size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fixed {
    /// A number of as many bits as the mask has.
    Number(u64),
    /// `DW_FORM_strp` of 32 bits.
    Text,
    /// `DW_FORM_ref4`.
    Reference,
    /// The value is in the abbreviation.
    Constant(i64),
}

/// The forms of DWARF 5 are below this (section 7.5.6); others are rare.
const FORMS: u16 = 0x2d;

impl Fixed {
    /// Bytes of the values of a form, when they are the same for all, and what it is.
    fn of_all(form: DwForm, header: &UnitHeader<Slice<'_>>) -> (Option<usize>, Option<Self>) {
        let constant = (form == dw::DW_FORM_implicit_const).then_some(0);
        (AttributeSpecification::new(dw::DW_AT_null, form, constant).size(header), Self::of(form, header.format()))
    }

    fn of(form: DwForm, format: Format) -> Option<Self> {
        Some(match form {
            dw::DW_FORM_data1 | dw::DW_FORM_flag => Self::Number(0xff),
            dw::DW_FORM_data2 => Self::Number(0xffff),
            dw::DW_FORM_data4 => Self::Number(0xffff_ffff),
            dw::DW_FORM_data8 => Self::Number(u64::MAX),
            dw::DW_FORM_ref4 => Self::Reference,
            dw::DW_FORM_strp if format == Format::Dwarf32 => Self::Text,
            dw::DW_FORM_flag_present => Self::Constant(1),
            _ => return None,
        })
    }
}

/// An attribute that few entries have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rare {
    pub(super) what: DwAt,
    pub(super) field: Field,
    /// Whether it is below zero.
    pub(super) negative: bool,
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
pub(super) struct Plan {
    /// Bytes of all attributes, when they are the same for all entries; without those of the expression.
    pub(super) length: Option<u32>,
    /// Where the length of an expression lies, the only attribute that may have any size.
    pub(super) expression: Option<u32>,
    pub(super) tag: DwTag,
    pub(super) role: Role,
    pub(super) has_children: bool,
    /// Whether all entries start with their name; the rest is counted from behind it.
    pub(super) text_first: bool,
    /// Whether the fields and `rare` have all attributes that matter.
    pub(super) regular: bool,
    /// Whether the fields have all attributes that matter, and a [`Window`] all attributes.
    pub(super) is_simple: bool,
    /// Whether it is such a plan, for parts of types with nothing below them, and under its code of one byte in [`Plans`].
    is_simple_part: bool,
    /// `DW_AT_declaration`, as the abbreviation states it.
    pub(super) declaration: bool,
    /// `DW_AT_external`, likewise.
    pub(super) external: bool,
    /// `DW_AT_prototyped`, likewise.
    pub(super) prototyped: bool,
    /// `DW_AT_name` as a [`super::name::Name`].
    pub(super) name: Field,
    /// `DW_AT_type`, or 0.
    pub(super) ty: Field,
    /// `DW_AT_byte_size`, the number of elements or the value of an enumerator.
    pub(super) amount: Field,
    /// `DW_AT_data_member_location`.
    pub(super) location: Field,
    /// Whether the expression is `DW_AT_location`.
    pub(super) has_location: bool,
    /// Where `DW_AT_sibling` lies, the expression not counted if that is before it.
    pub(super) sibling: Option<u32>,
    rare: (u32, u32),
    specs: (u32, u32),
}

/// The plans of one table of abbreviations.
#[derive(Debug, Default)]
pub(super) struct Plans {
    /// The table that they are for: where its section is in memory, where it is in that; and what else the sizes depend on.
    of: Option<(usize, usize, gimli::Encoding)>,
    plans: Vec<Plan>,
    /// By code: bytes of a part of a type with nothing below it, its code counted, when they are the same for all; else 0.
    parts: Vec<u8>,
    /// As many plans are those of the codes from 1 on, without gaps.
    dense: usize,
    /// Places in `plans` of all other codes.
    others: HashMap<u64, usize>,
    rare: Vec<Rare>,
    /// By form: bytes of its values, when they are the same for all, and what it is.
    forms: Vec<(Option<usize>, Option<Fixed>)>,
    specs: Vec<AttributeSpecification>,
    /// gimli wants a table where it is told each attribute.
    pub(super) no_abbreviations: Abbreviations,
}

impl Plans {
    /// Makes the plans for a unit, unless they are those that are here.
    ///
    /// # Errors
    /// [`gimli::Error`] when the table is malformed.
    pub(super) fn read(&mut self, section: &[u8], header: &UnitHeader<Slice<'_>>) -> Result<(), gimli::Error> {
        let start = header.debug_abbrev_offset().0;
        let of = Some((section.as_ptr().addr(), start, header.encoding()));
        if self.of == of {
            return Ok(());
        }
        if self.of.is_none_or(|(.., encoding)| encoding != header.encoding()) {
            self.forms = (0..FORMS).map(|form| Fixed::of_all(DwForm(form), header)).collect();
        }
        self.of = None;
        self.plans.clear();
        self.parts.clear();
        self.parts.resize(256, 0);
        self.dense = 0;
        self.others.clear();
        self.rare.clear();
        self.specs.clear();
        let mut at = start;
        let end = gimli::Error::UnexpectedEof(gimli::ReaderOffsetId(start as u64));
        loop {
            let code = uleb(section, &mut at).ok_or(end)?;
            if code == 0 {
                break;
            }
            let tag = small(uleb(section, &mut at).ok_or(end)?)?;
            let &children = section.get(at).ok_or(end)?;
            at += 1;
            let from = self.specs.len();
            loop {
                let (name, form) = match section.get(at..).and_then(|rest| rest.first_chunk()) {
                    // Nearly all are of one byte each.
                    Some(&[name @ 0..0x80, form @ 0..0x80]) => {
                        at += 2;
                        (u16::from(name), DwForm(u16::from(form)))
                    }
                    _ => {
                        let name = small(uleb(section, &mut at).ok_or(end)?)?;
                        (name, DwForm(small(uleb(section, &mut at).ok_or(end)?)?))
                    }
                };
                if (name, form.0) == (0, 0) {
                    break;
                }
                let constant = match form {
                    dw::DW_FORM_implicit_const => Some(sleb(section, &mut at).ok_or(end)?),
                    _ => None,
                };
                self.specs.push(AttributeSpecification::new(DwAt(name), form, constant));
            }
            self.add(code, DwTag(tag), children != 0, from, header)?;
        }
        self.of = of;
        Ok(())
    }

    /// Makes the plan for an abbreviation whose attributes are the last of `specs`.
    fn add(
        &mut self,
        code: u64,
        tag: DwTag,
        has_children: bool,
        from: usize,
        header: &UnitHeader<Slice<'_>>,
    ) -> Result<(), gimli::Error> {
        let mut plan = Plan {
            length: Some(0),
            expression: None,
            tag,
            role: role(tag),
            has_children,
            text_first: false,
            regular: true,
            is_simple: false,
            is_simple_part: false,
            declaration: false,
            external: false,
            prototyped: false,
            name: Field::constant(0),
            ty: Field::constant(0),
            amount: Field::constant(u64::MAX),
            location: Field::constant(u64::MAX),
            has_location: false,
            sibling: None,
            rare: (self.rare.len() as u32, 0),
            specs: (from as u32, self.specs.len() as u32),
        };
        for (index, spec) in self.specs[from..].iter().enumerate() {
            if index == 0 && spec.name() == dw::DW_AT_name && spec.form() == dw::DW_FORM_string {
                plan.text_first = true;
                continue;
            }
            let at = plan.length;
            if spec.form() == dw::DW_FORM_exprloc && at.is_some() && plan.expression.is_none() {
                plan.expression = at;
                plan.has_location = spec.name() == dw::DW_AT_location && header.address_size() == 8;
                plan.regular &= plan.has_location || !wanted(spec.name());
                continue;
            }
            let (size, form) = match self.forms.get(usize::from(spec.form().0)) {
                Some(&known) => known,
                None => (spec.size(header), None),
            };
            let size = size.and_then(|size| u32::try_from(size).ok());
            plan.length = at.zip(size).and_then(|(length, size)| length.checked_add(size));
            let form = spec.implicit_const_value().map_or(form, |value| Some(Fixed::Constant(value)));
            if spec.name() == dw::DW_AT_sibling && form == Some(Fixed::Reference) {
                plan.sibling = at;
            }
            if wanted(spec.name()) {
                match at.zip(form).filter(|_| plan.expression.is_none()) {
                    Some((at, form)) => plan.attribute(spec.name(), at, form, &mut self.rare),
                    None => plan.regular = false,
                }
            }
        }
        if plan.length.is_none() {
            (plan.regular, plan.sibling) = (false, None);
        }
        plan.rare.1 = self.rare.len() as u32;
        plan.is_simple = plan.regular
            && plan.expression.is_none()
            && plan.rare.0 == plan.rare.1
            && plan.length.is_some_and(|length| length as usize <= MAX_SIMPLE);
        if let (true, Some(length), None, 0..0x80) = (plan.is_plain_part(), plan.length, plan.expression, code)
            && !plan.text_first
        {
            self.parts[code as usize] = u8::try_from(length + 1).unwrap_or(0);
        }
        let place = self.plans.len();
        let is_dense = self.others.is_empty() && code == place as u64 + 1;
        plan.is_simple_part = plan.is_simple && plan.is_plain_part() && is_dense && code < 0x80;
        self.plans.push(plan);
        if is_dense {
            self.dense += 1;
        } else if code <= self.dense as u64 || self.others.insert(code, place).is_some() {
            return Err(gimli::Error::DuplicateAbbreviationCode(code));
        }
        Ok(())
    }

    /// The plan for an abbreviation code.
    ///
    /// # Errors
    /// [`gimli::Error`] when the unit has no such abbreviation.
    #[inline]
    pub(super) fn get(&self, code: u64) -> Result<&Plan, gimli::Error> {
        match self.plans.get(code.wrapping_sub(1) as usize) {
            Some(plan) if code <= self.dense as u64 => Ok(plan),
            _ => self.other(code),
        }
    }

    #[cold]
    fn other(&self, code: u64) -> Result<&Plan, gimli::Error> {
        let place = self.others.get(&code).ok_or(gimli::Error::InvalidAbbreviationCode(code))?;
        Ok(&self.plans[*place])
    }

    /// The plan for an abbreviation code, when it is a simple one for parts of types with nothing below them.
    #[inline(always)]
    pub(super) fn simple_part(&self, code: u8) -> Option<&Plan> {
        match self.plans.get(usize::from(code).wrapping_sub(1)) {
            Some(plan) if plan.is_simple_part => Some(plan),
            _ => None,
        }
    }

    /// The place behind the parts of a type that start at `at`, as far as they are simple.
    #[inline]
    pub(super) fn pass_parts(&self, bytes: &[u8], at: usize) -> usize {
        let Some(lengths) = self.parts.first_chunk::<256>() else { return at };
        let mut at = at;
        while let Some(&code) = bytes.get(at) {
            match lengths[usize::from(code)] {
                0 => break,
                length => at += usize::from(length),
            }
        }
        at
    }

    /// The attributes of a regular plan that few entries have.
    #[inline]
    pub(super) fn rare(&self, plan: &Plan) -> &[Rare] {
        &self.rare[plan.rare.0 as usize..plan.rare.1 as usize]
    }

    /// All attributes.
    pub(super) fn specs(&self, plan: &Plan) -> &[AttributeSpecification] {
        &self.specs[plan.specs.0 as usize..plan.specs.1 as usize]
    }
}

impl Plan {
    /// Whether an entry is a part of a type, with nothing below it.
    #[inline]
    pub(super) fn is_plain_part(&self) -> bool {
        self.role == Role::Part && !self.has_children
    }

    /// Takes in an attribute that lies in a fixed place.
    fn attribute(&mut self, name: DwAt, at: u32, form: Fixed, rare: &mut Vec<Rare>) {
        let (mut field, negative) = match form {
            Fixed::Number(mask) => (Field { at, mask, add: 0 }, false),
            Fixed::Text => (Field { at, mask: u64::from(u32::MAX), add: 1 }, false),
            Fixed::Reference => (Field { at, mask: u64::from(u32::MAX), add: 0 }, false),
            Fixed::Constant(value) => (Field::constant(value as u64), value < 0),
        };
        match (name, form) {
            (dw::DW_AT_name, Fixed::Text) => self.name = field,
            (dw::DW_AT_type, Fixed::Reference) => self.ty = field,
            (dw::DW_AT_declaration, Fixed::Constant(value)) => self.declaration = value != 0,
            (dw::DW_AT_external, Fixed::Constant(value)) => self.external = value != 0,
            (dw::DW_AT_prototyped, Fixed::Constant(value)) => self.prototyped = value != 0,
            (dw::DW_AT_specification | dw::DW_AT_abstract_origin, Fixed::Reference) => {
                rare.push(Rare { what: name, field, negative });
            }
            (dw::DW_AT_name | dw::DW_AT_type | dw::DW_AT_specification | dw::DW_AT_abstract_origin, _)
            | (_, Fixed::Text | Fixed::Reference) => self.regular = false,
            (dw::DW_AT_byte_size | dw::DW_AT_count, _) if !negative => self.amount = field,
            (dw::DW_AT_upper_bound, _) if !negative => {
                field.add = field.add.wrapping_add(1);
                self.amount = field;
            }
            (dw::DW_AT_const_value, _) if !negative => self.amount = field,
            (dw::DW_AT_data_member_location, _) if !negative => self.location = field,
            _ => rare.push(Rare { what: name, field, negative }),
        }
    }
}

fn small(value: u64) -> Result<u16, gimli::Error> {
    u16::try_from(value).map_err(|_| gimli::Error::BadUnsignedLeb128)
}

fn sleb(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let mut rest = gimli::EndianSlice::new(bytes.get(*at..)?, gimli::LittleEndian);
    let value = gimli::Reader::read_sleb128(&mut rest).ok()?;
    *at = bytes.len() - rest.len();
    Some(value)
}
