//! The entries of one unit that describe types, variables and functions, as a tree in memory.
//!
//! Comes in: one unit of DWARF 4 or 5. Decided: which entries and attributes matter (no locations that change, no call
//! sites, no inlined copies). Goes out: [`Tree`], whose parents, children and references within the unit are
//! looked up without reading DWARF again.

use super::LayoutError;
use super::sections::Slice;
use gimli::{AttributeValue, DwTag, Dwarf, Operation, Unit, UnitOffset, constants as dw};

/// Index of a node in its [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub usize);

/// An entry of the unit with the attributes that matter here.
#[derive(Debug, Clone)]
pub struct Node<'a> {
    /// Offset in the unit.
    pub offset: usize,
    /// `DW_TAG_*`.
    pub tag: DwTag,
    /// Enclosing entry; the root is its own parent.
    pub parent: NodeId,
    /// Entries directly below, in order.
    pub children: Vec<NodeId>,
    /// `DW_AT_name`.
    pub name: Option<&'a str>,
    /// `DW_AT_type`, as an offset in the unit.
    pub ty: Option<usize>,
    /// `DW_AT_specification` or `DW_AT_abstract_origin`, as an offset in the unit.
    pub origin: Option<usize>,
    /// `DW_AT_byte_size`.
    pub byte_size: Option<u64>,
    /// `DW_AT_bit_size`.
    pub bit_size: Option<u64>,
    /// `DW_AT_data_bit_offset` (DWARF 5, section 5.7.6).
    pub data_bit_offset: Option<u64>,
    /// `DW_AT_bit_offset` (DWARF 2 to 4): counted from the most significant bit of the storage unit.
    pub old_bit_offset: Option<u64>,
    /// `DW_AT_data_member_location` in bytes.
    pub location: Option<u64>,
    /// `DW_AT_alignment`.
    pub alignment: Option<u64>,
    /// Number of elements of a subrange.
    pub count: Option<u64>,
    /// `DW_AT_const_value` of an enumerator.
    pub value: Option<i128>,
    /// `DW_AT_decl_file`.
    pub decl_file: Option<u64>,
    /// `DW_AT_decl_line`.
    pub decl_line: Option<u64>,
    /// `DW_AT_encoding` of a base type.
    pub encoding: Option<dw::DwAte>,
    /// `DW_AT_declaration`.
    pub declaration: bool,
    /// `DW_AT_external`.
    pub external: bool,
    /// `DW_AT_inline`: an abstract instance.
    pub inline: bool,
    /// `DW_AT_prototyped`.
    pub prototyped: bool,
    /// The address, when `DW_AT_location` is one fixed address.
    pub address: Option<u64>,
    /// `DW_AT_low_pc`.
    pub low_pc: Option<u64>,
    /// End of the range that starts at `low_pc`.
    pub high_pc: Option<u64>,
    /// `DW_AT_ranges`, not yet read.
    pub ranges: Option<AttributeValue<Slice<'a>>>,
    high_pc_is_length: bool,
}

/// The entries of one unit, in the order of the unit.
#[derive(Debug, Default)]
pub struct Tree<'a> {
    nodes: Vec<Node<'a>>,
}

fn wanted(tag: DwTag) -> bool {
    matches!(
        tag,
        dw::DW_TAG_compile_unit
            | dw::DW_TAG_partial_unit
            | dw::DW_TAG_base_type
            | dw::DW_TAG_unspecified_type
            | dw::DW_TAG_typedef
            | dw::DW_TAG_structure_type
            | dw::DW_TAG_union_type
            | dw::DW_TAG_enumeration_type
            | dw::DW_TAG_enumerator
            | dw::DW_TAG_member
            | dw::DW_TAG_array_type
            | dw::DW_TAG_subrange_type
            | dw::DW_TAG_pointer_type
            | dw::DW_TAG_subroutine_type
            | dw::DW_TAG_const_type
            | dw::DW_TAG_volatile_type
            | dw::DW_TAG_restrict_type
            | dw::DW_TAG_atomic_type
            | dw::DW_TAG_subprogram
            | dw::DW_TAG_lexical_block
            | dw::DW_TAG_formal_parameter
            | dw::DW_TAG_unspecified_parameters
            | dw::DW_TAG_variable
    )
}

impl<'a> Tree<'a> {
    /// Reads the entries of a unit.
    ///
    /// # Errors
    /// [`LayoutError`] when the DWARF is malformed or refers to another unit.
    pub fn read(dwarf: &Dwarf<Slice<'a>>, unit: &Unit<Slice<'a>>) -> Result<Self, LayoutError> {
        let mut tree = Self::default();
        let mut open: Vec<NodeId> = Vec::new(); // the node at each depth
        let mut skip_below: Option<isize> = None;
        let mut entries = unit.entries_raw(None)?;
        while !entries.is_empty() {
            let depth = entries.next_depth();
            let offset = entries.next_offset().0;
            let Some(abbreviation) = entries.read_abbreviation()? else { continue };
            if skip_below.is_some_and(|limit| depth > limit) {
                entries.skip_attributes(abbreviation.attributes())?;
                continue;
            }
            skip_below = None;
            if !wanted(abbreviation.tag()) {
                entries.skip_attributes(abbreviation.attributes())?;
                skip_below = Some(depth);
                continue;
            }
            let depth = usize::try_from(depth).map_err(|_| LayoutError::Structure { offset })?;
            if depth > open.len() || (depth == 0) != tree.nodes.is_empty() {
                return Err(LayoutError::Structure { offset });
            }
            open.truncate(depth);
            let parent = open.last().copied().unwrap_or(NodeId(tree.nodes.len()));
            let mut node = Node::new(offset, abbreviation.tag(), parent);
            for &spec in abbreviation.attributes() {
                node.attribute(dwarf, unit, &entries.read_attribute(spec)?)?;
            }
            open.push(tree.push(node));
        }
        if tree.nodes.is_empty() {
            return Err(LayoutError::Structure { offset: 0 });
        }
        Ok(tree)
    }

    /// Reads some entries of a unit: pairs of its offset and that of the entry above it, by offset, from the first of the unit on.
    ///
    /// # Errors
    /// As [`Tree::read`], and when no entry is at an offset.
    pub(crate) fn read_at(
        dwarf: &Dwarf<Slice<'a>>,
        unit: &Unit<Slice<'a>>,
        places: &[(usize, usize)],
    ) -> Result<Self, LayoutError> {
        let mut tree = Self { nodes: Vec::with_capacity(places.len()) };
        for &(offset, parent) in places {
            let mut entries = unit.entries_raw(Some(UnitOffset(offset)))?;
            let abbreviation = entries.read_abbreviation()?.ok_or(LayoutError::Structure { offset })?;
            let parent = if tree.nodes.is_empty() { NodeId(0) } else { tree.at(parent)? };
            let mut node = Node::new(offset, abbreviation.tag(), parent);
            for &spec in abbreviation.attributes() {
                node.attribute(dwarf, unit, &entries.read_attribute(spec)?)?;
            }
            tree.push(node);
        }
        Ok(tree)
    }

    /// Takes in the next entry.
    fn push(&mut self, mut node: Node<'a>) -> NodeId {
        let id = NodeId(self.nodes.len());
        let parent = node.parent;
        node.finish();
        self.nodes.push(node);
        if parent != id {
            self.nodes[parent.0].children.push(id);
        }
        id
    }

    /// The node behind an id of this tree.
    pub fn node(&self, id: NodeId) -> &Node<'a> {
        &self.nodes[id.0]
    }

    /// The node at an offset of the unit.
    ///
    /// # Errors
    /// [`LayoutError::Reference`] when no entry of a wanted kind starts there.
    pub fn at(&self, offset: usize) -> Result<NodeId, LayoutError> {
        self.nodes
            .binary_search_by_key(&offset, |node| node.offset)
            .map(NodeId)
            .map_err(|_| LayoutError::Reference { offset })
    }

    /// All nodes in the order of the unit.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Node<'a>)> {
        self.nodes.iter().enumerate().map(|(index, node)| (NodeId(index), node))
    }

    /// Children of a node.
    pub fn children(&self, id: NodeId) -> impl Iterator<Item = (NodeId, &Node<'a>)> {
        self.node(id).children.iter().map(|&id| (id, self.node(id)))
    }

    /// The node that gives a node its name and type: itself, or what it was declared as or copied from.
    ///
    /// # Errors
    /// [`LayoutError`] when the chain leads nowhere or in a circle.
    pub fn origin(&self, id: NodeId) -> Result<NodeId, LayoutError> {
        let mut current = id;
        for _ in 0..8 {
            match self.node(current).origin {
                None => return Ok(current),
                Some(offset) => current = self.at(offset)?,
            }
        }
        Err(LayoutError::TooDeep { offset: self.node(id).offset })
    }

    /// The function that a node stands in: the nearest subprogram above it.
    ///
    /// # Errors
    /// [`LayoutError`] when the function's origin cannot be followed.
    pub fn scope(&self, id: NodeId) -> Result<Option<&'a str>, LayoutError> {
        let mut current = id;
        loop {
            let parent = self.node(current).parent;
            if parent == current {
                return Ok(None);
            }
            if self.node(parent).tag == dw::DW_TAG_subprogram {
                return Ok(self.node(self.origin(parent)?).name);
            }
            current = parent;
        }
    }
}

impl<'a> Node<'a> {
    fn new(offset: usize, tag: DwTag, parent: NodeId) -> Self {
        Self {
            offset,
            tag,
            parent,
            children: Vec::new(),
            name: None,
            ty: None,
            origin: None,
            byte_size: None,
            bit_size: None,
            data_bit_offset: None,
            old_bit_offset: None,
            location: None,
            alignment: None,
            count: None,
            value: None,
            decl_file: None,
            decl_line: None,
            encoding: None,
            declaration: false,
            external: false,
            inline: false,
            prototyped: false,
            address: None,
            low_pc: None,
            high_pc: None,
            ranges: None,
            high_pc_is_length: false,
        }
    }

    /// Whether the entry is a struct, union or enum.
    pub fn is_aggregate(&self) -> bool {
        matches!(self.tag, dw::DW_TAG_structure_type | dw::DW_TAG_union_type | dw::DW_TAG_enumeration_type)
    }

    /// Whether a function has code of its own in this unit.
    pub fn has_code(&self) -> bool {
        self.low_pc.is_some() || self.ranges.is_some()
    }

    fn finish(&mut self) {
        if self.high_pc_is_length {
            self.high_pc = self.low_pc.zip(self.high_pc).map(|(low, length)| low.wrapping_add(length));
        }
    }

    fn attribute(
        &mut self,
        dwarf: &Dwarf<Slice<'a>>,
        unit: &Unit<Slice<'a>>,
        attribute: &gimli::Attribute<Slice<'a>>,
    ) -> Result<(), LayoutError> {
        let value = attribute.value();
        let number = || value.udata_value();
        match attribute.name() {
            dw::DW_AT_name => self.name = Some(text(dwarf.attr_string(unit, value)?, self.offset)?),
            dw::DW_AT_type => self.ty = Some(reference(unit, &value, self.offset)?),
            dw::DW_AT_specification | dw::DW_AT_abstract_origin => {
                self.origin = Some(reference(unit, &value, self.offset)?);
            }
            dw::DW_AT_byte_size => self.byte_size = number(),
            dw::DW_AT_bit_size => self.bit_size = number(),
            dw::DW_AT_data_bit_offset => self.data_bit_offset = number(),
            dw::DW_AT_bit_offset => self.old_bit_offset = number(),
            dw::DW_AT_data_member_location => {
                self.location = match value {
                    AttributeValue::Exprloc(expression) => match expression.operations(unit.encoding()).next()? {
                        Some(Operation::PlusConstant { value }) => Some(value),
                        _ => return Err(LayoutError::MemberLocation { offset: self.offset }),
                    },
                    _ => number(),
                };
            }
            dw::DW_AT_alignment => self.alignment = number(),
            dw::DW_AT_count => self.count = number(),
            // An upper bound of -1 is an array of no elements.
            dw::DW_AT_upper_bound => {
                self.count = number().map(|bound| bound.wrapping_add(1));
                if self.count.is_none() && value.sdata_value() == Some(-1) {
                    self.count = Some(0);
                }
            }
            dw::DW_AT_const_value => self.value = constant(&attribute.raw_value()),
            dw::DW_AT_decl_file => {
                self.decl_file = match value {
                    AttributeValue::FileIndex(index) => Some(index),
                    _ => number(),
                };
            }
            dw::DW_AT_decl_line => self.decl_line = number(),
            dw::DW_AT_encoding => {
                if let AttributeValue::Encoding(encoding) = value {
                    self.encoding = Some(encoding);
                }
            }
            dw::DW_AT_declaration => self.declaration = value == AttributeValue::Flag(true),
            dw::DW_AT_external => self.external = value == AttributeValue::Flag(true),
            dw::DW_AT_prototyped => self.prototyped = value == AttributeValue::Flag(true),
            dw::DW_AT_inline => self.inline = true,
            dw::DW_AT_location => {
                if let AttributeValue::Exprloc(expression) = value {
                    let mut operations = expression.operations(unit.encoding());
                    if let Some(Operation::Address { address }) = operations.next()?
                        && operations.next()?.is_none()
                    {
                        self.address = Some(address);
                    }
                }
            }
            dw::DW_AT_low_pc => self.low_pc = dwarf.attr_address(unit, value)?,
            dw::DW_AT_high_pc => {
                // A constant counts from low_pc (DWARF 5, section 2.17.2); `finish` adds it.
                self.high_pc = dwarf.attr_address(unit, value)?;
                if self.high_pc.is_none() {
                    self.high_pc = value.udata_value();
                    self.high_pc_is_length = true;
                }
            }
            dw::DW_AT_ranges => self.ranges = Some(value),
            _ => {}
        }
        Ok(())
    }
}

fn text<'a>(slice: Slice<'a>, offset: usize) -> Result<&'a str, LayoutError> {
    std::str::from_utf8(slice.slice()).map_err(|_| LayoutError::Name { offset })
}

fn reference<'a>(
    unit: &Unit<Slice<'a>>,
    value: &AttributeValue<Slice<'a>>,
    offset: usize,
) -> Result<usize, LayoutError> {
    match value {
        AttributeValue::UnitRef(UnitOffset(target)) => Ok(*target),
        AttributeValue::DebugInfoRef(target) => match target.to_unit_offset(&unit.header) {
            Some(UnitOffset(target)) => Ok(target),
            None => Err(LayoutError::OtherUnit { offset }),
        },
        _ => Err(LayoutError::OtherUnit { offset }),
    }
}

fn constant(value: &AttributeValue<Slice<'_>>) -> Option<i128> {
    match *value {
        AttributeValue::Sdata(value) => Some(value.into()),
        _ => value.udata_value().map(i128::from),
    }
}
