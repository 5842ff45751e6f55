//! One entry of a unit: a type, a part of a type, a function or a variable, with the attributes that layouts depend on.
//!
//! Comes in: attributes, as a plan or gimli finds them. Decided: what a value means, whatever form it has. Goes out:
//! [`Attributes`] of an [`Entry`] or of a [`Part`] of it.

use super::name::Name;
use super::plan::{Plan, Rare, Window};
use super::scan::Index;
use super::unit::Unit;
use crate::dwarf_layout::LayoutError;
use crate::dwarf_layout::sections::Slice;
use gimli::{AttributeValue, DwAt, DwTag, Dwarf, Operation, UnitOffset, constants as dw};

/// Whether an attribute matters to layouts.
pub(super) fn wanted(attribute: DwAt) -> bool {
    matches!(
        attribute,
        dw::DW_AT_name
            | dw::DW_AT_type
            | dw::DW_AT_specification
            | dw::DW_AT_abstract_origin
            | dw::DW_AT_byte_size
            | dw::DW_AT_bit_size
            | dw::DW_AT_bit_offset
            | dw::DW_AT_data_bit_offset
            | dw::DW_AT_data_member_location
            | dw::DW_AT_location
            | dw::DW_AT_alignment
            | dw::DW_AT_count
            | dw::DW_AT_upper_bound
            | dw::DW_AT_const_value
            | dw::DW_AT_declaration
            | dw::DW_AT_external
            | dw::DW_AT_prototyped
    )
}

/// A number that an attribute may state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number(u64);

impl Number {
    const NONE: Self = Self(u64::MAX);

    pub(super) fn of(value: u64) -> Self {
        Self(value)
    }

    #[inline]
    pub(super) fn get(self) -> Option<u64> {
        (self != Self::NONE).then_some(self.0)
    }
}

/// A number of bits, or an alignment, that an attribute may state; what is larger than any is taken for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Small(u32);

impl Small {
    const NONE: Self = Self(u32::MAX);

    #[inline]
    pub(super) fn get(self) -> Option<u64> {
        (self != Self::NONE).then_some(u64::from(self.0))
    }

    fn of(number: Number) -> Self {
        Self(u32::try_from(number.0).unwrap_or(u32::MAX))
    }
}

/// What an entry says; what no kind of entry has together shares a field.
#[derive(Debug, Clone)]
pub(super) struct Attributes {
    pub(super) name: Name,
    /// `DW_AT_byte_size`; elements of a bound; value of an enumerator.
    amount: Number,
    /// `DW_AT_data_member_location` in bytes; the address of a variable.
    pub(super) location: Number,
    /// Its type: an offset in the unit.
    pub(super) ty: u32,
    /// What it completes or copies: an offset in the unit.
    pub(super) origin: u32,
    pub(super) bit_size: Small,
    /// `DW_AT_data_bit_offset`, or `DW_AT_bit_offset` when `from_top`.
    pub(super) bit_offset: Small,
    pub(super) alignment: Small,
    pub(super) from_top: bool,
    /// Whether the value of an enumerator is below zero.
    pub(super) negative: bool,
    pub(super) declaration: bool,
    pub(super) external: bool,
    pub(super) prototyped: bool,
}

/// A type, a function or a variable: as little as layouts need, so that those of a unit stay in the caches.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: Name,
    /// `DW_AT_byte_size`.
    pub(super) size: Number,
    /// Offset in the unit.
    pub(super) offset: u32,
    /// Place behind its attributes, where its parts are; 0 for none.
    pub(super) parts: u32,
    /// Place of the next entry that is not below it, when its parts were jumped over; else 0.
    pub(super) sibling: u32,
    /// Its type; an offset in the unit until all entries are known.
    pub(super) ty: Index,
    /// What it completes or copies; likewise.
    pub(super) origin: Index,
    /// Function that it is local to.
    pub(super) owner: Index,
    /// The typedef that names an anonymous struct, union or enum.
    pub(super) named_by: Index,
    pub(super) alignment: Small,
    pub(super) tag: DwTag,
    pub(super) declaration: bool,
    pub(super) external: bool,
    pub(super) prototyped: bool,
    /// Whether its place is stated, of a variable its address.
    pub(super) has_address: bool,
}

/// A member, enumerator, bound or parameter.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) says: Attributes,
    /// Offset in the unit.
    pub(super) offset: u32,
    pub(super) tag: DwTag,
}

/// A member or parameter, when it says no more than this.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlainPart {
    pub(super) tag: DwTag,
    pub(super) name: Name,
    /// Its type: an offset in the unit.
    pub(super) ty: u32,
    /// `DW_AT_data_member_location`, in bytes.
    pub(super) location: Number,
}

/// A type that says no more than this, and what its abbreviation does.
#[derive(Debug, Clone, Copy)]
pub(super) struct SimpleType {
    pub(super) name: Name,
    /// Its type: an offset in the unit.
    pub(super) ty: u32,
    /// `DW_AT_byte_size`.
    pub(super) size: Number,
}

/// The offset in the unit that a reference leads to.
fn reference<'a>(unit: &Unit<'a>, value: &AttributeValue<Slice<'a>>, offset: usize) -> Result<u32, LayoutError> {
    let target = match value {
        AttributeValue::UnitRef(UnitOffset(target)) => Some(*target),
        AttributeValue::DebugInfoRef(target) => target.to_unit_offset(&unit.header).map(|target| target.0),
        _ => None,
    };
    target.and_then(|target| u32::try_from(target).ok()).ok_or(LayoutError::OtherUnit { offset })
}

impl Entry {
    /// A type with a simple plan; what is above and below it comes later.
    #[inline(always)] // for each type: it is then made where it stays
    pub(super) fn simple(offset: u32, says: SimpleType, plan: &Plan) -> Self {
        Self {
            name: says.name,
            size: says.size,
            offset,
            parts: 0,
            sibling: 0,
            ty: says.ty,
            origin: 0,
            owner: 0,
            named_by: 0,
            alignment: Small::NONE,
            tag: plan.tag,
            declaration: plan.declaration,
            external: plan.external,
            prototyped: plan.prototyped,
            has_address: false,
        }
    }

    pub(super) fn new(offset: u32, tag: DwTag, says: &Attributes) -> Self {
        Self {
            name: says.name,
            size: says.amount,
            offset,
            parts: 0,
            sibling: 0,
            ty: says.ty,
            origin: says.origin,
            owner: 0,
            named_by: 0,
            alignment: says.alignment,
            tag,
            declaration: says.declaration,
            external: says.external,
            prototyped: says.prototyped,
            has_address: says.location.get().is_some(),
        }
    }

    /// `DW_AT_byte_size`.
    #[inline]
    pub(super) fn byte_size(&self) -> Option<u64> {
        self.size.get()
    }

    /// Whether the entry is a struct, union or enum.
    pub(super) fn is_aggregate(&self) -> bool {
        is_aggregate(self.tag)
    }
}

/// Whether a tag is that of a struct, union or enum.
#[inline]
pub(super) fn is_aggregate(tag: DwTag) -> bool {
    matches!(tag, dw::DW_TAG_structure_type | dw::DW_TAG_union_type | dw::DW_TAG_enumeration_type)
}

impl Part {
    pub(super) fn new() -> Self {
        Self { says: Attributes::default(), offset: 0, tag: dw::DW_TAG_null }
    }
}

impl Default for Attributes {
    #[inline]
    fn default() -> Self {
        Self {
            name: Name::NONE,
            amount: Number::NONE,
            location: Number::NONE,
            ty: 0,
            origin: 0,
            bit_size: Small::NONE,
            bit_offset: Small::NONE,
            alignment: Small::NONE,
            from_top: false,
            negative: false,
            declaration: false,
            external: false,
            prototyped: false,
        }
    }
}

impl Attributes {
    /// `DW_AT_byte_size` of a member.
    pub(super) fn byte_size(&self) -> Option<u64> {
        self.amount.get()
    }

    /// Elements of a bound.
    pub(super) fn count(&self) -> Option<u64> {
        self.amount.get()
    }

    /// Value of an enumerator, as 64 bits.
    pub(super) fn value(&self) -> u64 {
        self.amount.0
    }

    /// An attribute as gimli reads it.
    pub(super) fn attribute<'a>(
        &mut self,
        dwarf: &Dwarf<Slice<'a>>,
        unit: &Unit<'a>,
        offset: usize,
        attribute: &gimli::Attribute<Slice<'a>>,
    ) -> Result<(), LayoutError> {
        let name = attribute.name();
        if !wanted(name) {
            return Ok(());
        }
        match name {
            dw::DW_AT_name => self.name = unit.name_of(dwarf, attribute.raw_value())?,
            dw::DW_AT_type | dw::DW_AT_specification | dw::DW_AT_abstract_origin => {
                self.number(name, u64::from(reference(unit, &attribute.raw_value(), offset)?), false);
            }
            dw::DW_AT_data_member_location | dw::DW_AT_location => match attribute.value() {
                AttributeValue::Exprloc(expression) => {
                    let mut operations = expression.operations(unit.header.encoding());
                    match (name, operations.next()?) {
                        (dw::DW_AT_data_member_location, Some(Operation::PlusConstant { value })) => {
                            self.number(name, value, false);
                        }
                        (dw::DW_AT_location, Some(Operation::Address { address })) if operations.next()?.is_none() => {
                            self.number(name, address, false);
                        }
                        (dw::DW_AT_data_member_location, _) => return Err(LayoutError::MemberLocation { offset }),
                        _ => {}
                    }
                }
                value if name == dw::DW_AT_data_member_location => {
                    if let Some(value) = value.udata_value() {
                        self.number(name, value, false);
                    }
                }
                _ => {}
            },
            _ => match attribute.raw_value() {
                AttributeValue::Flag(value) => self.number(name, u64::from(value), false),
                AttributeValue::Sdata(value) => self.number(name, value as u64, value < 0),
                value => {
                    if let Some(value) = value.udata_value() {
                        self.number(name, value, false);
                    }
                }
            },
        }
        Ok(())
    }

    /// The attributes of a simple plan.
    #[inline(always)]
    pub(super) fn simple(&mut self, name: Name, window: &Window, plan: &Plan) {
        self.name = name;
        self.ty = plan.ty.within(window) as u32;
        self.amount = Number(plan.amount.within(window));
        self.location = Number(plan.location.within(window));
        self.flags(plan);
    }

    /// The attributes of a regular plan but the name.
    pub(super) fn regular(&mut self, bytes: &[u8], start: usize, plan: &Plan, rare: &[Rare]) {
        self.ty = plan.ty.of(bytes, start) as u32;
        self.amount = Number(plan.amount.of(bytes, start));
        self.location = Number(plan.location.of(bytes, start));
        self.flags(plan);
        for rare in rare {
            self.number(rare.what, rare.field.of(bytes, start), rare.negative);
        }
    }

    #[inline]
    fn flags(&mut self, plan: &Plan) {
        self.declaration = plan.declaration;
        self.external = plan.external;
        self.prototyped = plan.prototyped;
    }

    /// An attribute whose value is a number, a flag or a reference within the unit.
    fn number(&mut self, attribute: DwAt, value: u64, negative: bool) {
        let number = if negative { Number::NONE } else { Number(value) };
        match attribute {
            dw::DW_AT_type => self.ty = value as u32,
            dw::DW_AT_specification | dw::DW_AT_abstract_origin => self.origin = value as u32,
            dw::DW_AT_byte_size | dw::DW_AT_count => self.amount = number,
            dw::DW_AT_bit_size => self.bit_size = Small::of(number),
            dw::DW_AT_data_bit_offset => (self.bit_offset, self.from_top) = (Small::of(number), false),
            dw::DW_AT_bit_offset if self.bit_offset == Small::NONE => {
                (self.bit_offset, self.from_top) = (Small::of(number), true);
            }
            dw::DW_AT_data_member_location | dw::DW_AT_location => self.location = number,
            dw::DW_AT_alignment => self.alignment = Small::of(number),
            // An upper bound of -1 is an array of no elements.
            dw::DW_AT_upper_bound if negative && value != u64::MAX => {}
            dw::DW_AT_upper_bound => self.amount = Number(value.wrapping_add(1)),
            dw::DW_AT_const_value => (self.amount, self.negative) = (Number(value), negative),
            dw::DW_AT_declaration => self.declaration = value != 0,
            dw::DW_AT_external => self.external = value != 0,
            dw::DW_AT_prototyped => self.prototyped = value != 0,
            _ => {}
        }
    }
}
