//! What a value is made of, as far as it takes to carry it from one layout to another.
//!
//! Comes in: the type of a member or variable. Decided: scalar, array, named type, or anything else; which types a function
//! works on. Goes out: [`Shape`], keys of types.

use super::LayoutError;
use super::collect::Collector;
use super::tree::NodeId;
use gimli::constants as dw;
use std::collections::BTreeSet;

/// Nesting of arrays, typedefs and qualifiers beyond this is taken for a circle.
const MAX_DEPTH: u32 = 100;

/// What a value is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// A number that is sign-extended when it is widened.
    Signed(u64),
    /// A number, truth value or character that is zero-extended; the size in bytes, as in the others.
    Unsigned(u64),
    /// A pointer.
    Pointer,
    /// An array; `None` is a flexible one.
    Array(Option<u64>, Box<Shape>),
    /// A struct or union with a name: its key in [`super::Layouts::types`].
    Named(String),
    /// Anything else, spelled in C: floating point, an incomplete type, a struct without a name in an array.
    Other(String),
}

impl Collector<'_, '_> {
    /// The shape of the type at an offset of the unit.
    pub(super) fn shape(&self, ty: Option<usize>) -> Result<Shape, LayoutError> {
        self.shape_at(ty, 0)
    }

    fn shape_at(&self, ty: Option<usize>, depth: u32) -> Result<Shape, LayoutError> {
        let Some(offset) = ty else { return Ok(Shape::Other("void".to_owned())) };
        let id = self.tree.at(offset)?;
        let node = self.tree.node(id);
        if depth > MAX_DEPTH {
            return Err(LayoutError::TooDeep { offset });
        }
        let size = node.byte_size.unwrap_or(0);
        Ok(match node.tag {
            dw::DW_TAG_base_type => match node.encoding {
                Some(dw::DW_ATE_signed | dw::DW_ATE_signed_char) => Shape::Signed(size),
                Some(dw::DW_ATE_unsigned | dw::DW_ATE_unsigned_char | dw::DW_ATE_boolean) => Shape::Unsigned(size),
                _ => self.other(offset)?,
            },
            dw::DW_TAG_enumeration_type => {
                let negative = self.tree.children(id).any(|(_, child)| child.value.is_some_and(|value| value < 0));
                if negative { Shape::Signed(size) } else { Shape::Unsigned(size) }
            }
            dw::DW_TAG_pointer_type => Shape::Pointer,
            dw::DW_TAG_structure_type | dw::DW_TAG_union_type => match self.key(id)? {
                Some(key) => Shape::Named(key),
                None => self.other(offset)?,
            },
            dw::DW_TAG_array_type => {
                let mut shape = self.shape_at(node.ty, depth + 1)?;
                let dimensions: Vec<Option<u64>> = self
                    .tree
                    .children(id)
                    .filter(|(_, child)| child.tag == dw::DW_TAG_subrange_type)
                    .map(|(_, child)| child.count)
                    .collect();
                for count in dimensions.into_iter().rev() {
                    shape = Shape::Array(count, Box::new(shape));
                }
                shape
            }
            // Typedefs and qualifiers.
            _ if node.ty.is_some() => self.shape_at(node.ty, depth + 1)?,
            _ => self.other(offset)?,
        })
    }

    fn other(&self, offset: usize) -> Result<Shape, LayoutError> {
        Ok(Shape::Other(self.speller.declare(Some(offset), "")?))
    }

    /// Keys of the structs, unions and enums that the parameters and variables of a function are made of or point to.
    pub(super) fn used_types(&self, function: NodeId) -> Result<BTreeSet<String>, LayoutError> {
        let mut used = BTreeSet::new();
        let mut left = vec![function];
        while let Some(id) = left.pop() {
            for (child, node) in self.tree.children(id) {
                match node.tag {
                    dw::DW_TAG_lexical_block => left.push(child),
                    dw::DW_TAG_formal_parameter | dw::DW_TAG_variable => {
                        let ty = node.ty.or(self.tree.node(self.tree.origin(child)?).ty);
                        used.extend(self.pointee(ty)?);
                    }
                    _ => {}
                }
            }
        }
        Ok(used)
    }

    /// The struct, union or enum behind pointers, arrays, typedefs and qualifiers.
    fn pointee(&self, ty: Option<usize>) -> Result<Option<String>, LayoutError> {
        let mut next = ty;
        for _ in 0..MAX_DEPTH {
            let Some(offset) = next else { return Ok(None) };
            let id = self.tree.at(offset)?;
            let node = self.tree.node(id);
            if node.is_aggregate() {
                return self.key(id);
            }
            next = node.ty;
        }
        Err(LayoutError::TooDeep { offset: ty.unwrap_or_default() })
    }
}
