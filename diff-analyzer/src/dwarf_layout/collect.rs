//! From the tree of a unit to plain layouts.
//!
//! Comes in: the tree and the unit's file table. Decided: which entries are definitions, under which key a type is
//! found, where members lie in bits. Goes out: [`Layouts`].

use super::shape::Shape;
use super::spell::{Speller, keyword, list};
use super::tree::{Node, NodeId, Tree};
use super::{Files, Function, LayoutError, Layouts, Member, Place, TypeKind, TypeLayout, Variable};
use gimli::constants as dw;
use std::cell::Cell;
use std::collections::HashMap;

/// Nesting of anonymous members beyond this is taken for a circle.
const MAX_NESTING: u32 = 64;
/// Members that one type may have, anonymous ones and their contents included.
const MAX_MEMBERS: u32 = 100_000;

/// Collects layouts from one tree.
pub(super) struct Collector<'t, 'a> {
    pub(super) tree: &'t Tree<'a>,
    pub(super) speller: Speller<'t, 'a>,
    files: Files<'t, 'a>,
    members_left: Cell<u32>,
}

impl<'t, 'a> Collector<'t, 'a> {
    pub(super) fn new(tree: &'t Tree<'a>, files: Files<'t, 'a>) -> Result<Self, LayoutError> {
        Ok(Self { tree, speller: Speller::new(tree)?, files, members_left: Cell::new(0) })
    }

    /// Everything in the unit; types only when their bare name is wanted.
    pub(super) fn layouts(&self, wanted: impl Fn(&str) -> bool) -> Result<Layouts, LayoutError> {
        let mut layouts = Layouts::default();
        self.types(&mut layouts, wanted)?;
        layouts.variables = self.variables()?;
        layouts.functions = self.functions()?;
        Ok(layouts)
    }

    /// Types with a definition, and those without.
    pub(super) fn types(&self, layouts: &mut Layouts, wanted: impl Fn(&str) -> bool) -> Result<(), LayoutError> {
        for (id, node) in self.tree.iter() {
            if !(node.is_aggregate() || node.tag == dw::DW_TAG_typedef) {
                continue;
            }
            if !node.name.or(self.speller.typedef_name(id)).is_none_or(&wanted) {
                continue;
            }
            let Some(key) = self.key(id)? else { continue };
            if node.declaration {
                layouts.declarations.insert(key);
                continue;
            }
            // The typedef of an anonymous type has that type's key; the type itself is what counts.
            if node.tag == dw::DW_TAG_typedef
                && let Some(target) = node.ty
            {
                let target = self.tree.at(target)?;
                if self.speller.typedef_name(target) == node.name {
                    continue;
                }
            }
            let layout = self.layout(id, node, key.clone())?;
            layouts.types.entry(key).or_insert(layout);
        }
        layouts.declarations.retain(|name| !layouts.types.contains_key(name));
        Ok(())
    }

    /// The name under which a type is found; none for an anonymous struct or union without a typedef.
    pub(super) fn key(&self, id: NodeId) -> Result<Option<String>, LayoutError> {
        let node = self.tree.node(id);
        let bare = match (node.name, keyword(node), self.speller.typedef_name(id)) {
            (Some(name), Some(keyword), _) => format!("{keyword} {name}"),
            (Some(name), None, _) | (None, _, Some(name)) => name.to_owned(),
            (None, Some("enum"), None) => match self.tree.children(id).find_map(|(_, child)| child.name) {
                Some(first) => format!("enum {{ {first} }}"),
                None => return Ok(None),
            },
            (None, _, None) => return Ok(None),
        };
        Ok(Some(match self.tree.scope(id)? {
            Some(function) => format!("{bare} in {function}()"),
            None => bare,
        }))
    }

    fn keys(&self, ids: Vec<NodeId>) -> Result<Vec<String>, LayoutError> {
        let mut keys = Vec::new();
        for id in ids {
            if let Some(key) = self.key(id)?
                && !keys.contains(&key)
            {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    fn layout(&self, id: NodeId, node: &Node<'a>, name: String) -> Result<TypeLayout, LayoutError> {
        let mut layout = TypeLayout {
            name,
            kind: TypeKind::Typedef,
            size: 0,
            align: 1,
            members: Vec::new(),
            enumerators: Vec::new(),
            target: None,
            embeds: Vec::new(),
            place: self.place(node),
        };
        match node.tag {
            dw::DW_TAG_structure_type | dw::DW_TAG_union_type => {
                let is_struct = node.tag == dw::DW_TAG_structure_type;
                layout.kind = if is_struct { TypeKind::Struct } else { TypeKind::Union };
                layout.size = node.byte_size.unwrap_or(0);
                layout.align = self.speller.align_of_aggregate(id)?;
                self.members_left.set(MAX_MEMBERS);
                layout.members = self.members(id, 0, 0)?;
            }
            dw::DW_TAG_enumeration_type => {
                layout.kind = TypeKind::Enum;
                layout.size = node.byte_size.unwrap_or(0);
                layout.align = layout.size.max(1);
                layout.target = node.ty.map(|ty| self.speller.declare(Some(ty), "")).transpose()?;
                for (_, child) in self.tree.children(id).filter(|(_, n)| n.tag == dw::DW_TAG_enumerator) {
                    if let (Some(name), Some(value)) = (child.name, child.value) {
                        layout.enumerators.push((name.to_owned(), value));
                    }
                }
            }
            _ => {
                layout.size = self.speller.size(node.ty)?.unwrap_or(0);
                layout.align = self.speller.align(node.ty)?;
                layout.target = Some(self.speller.declare(node.ty, "")?);
                layout.embeds = self.keys(self.speller.embeds(node.ty)?)?;
            }
        }
        Ok(layout)
    }

    fn members(&self, id: NodeId, base_bits: u64, nesting: u32) -> Result<Vec<Member>, LayoutError> {
        let mut members = Vec::new();
        for (_, node) in self.tree.children(id).filter(|(_, n)| n.tag == dw::DW_TAG_member) {
            let left = self.members_left.get().checked_sub(1);
            let (Some(left), true) = (left, nesting < MAX_NESTING) else {
                return Err(LayoutError::TooDeep { offset: node.offset });
            };
            self.members_left.set(left);
            members.push(self.member(node, base_bits, nesting)?);
        }
        Ok(members)
    }

    fn member(&self, node: &Node<'a>, base_bits: u64, nesting: u32) -> Result<Member, LayoutError> {
        let name = node.name.unwrap_or_default();
        let size = self.speller.size(node.ty)?.unwrap_or(0);
        let bit_offset = base_bits.wrapping_add(offset_in_bits(node, size));
        let mut member = Member {
            name: name.to_owned(),
            bit_offset,
            bit_size: node.bit_size.unwrap_or(size.saturating_mul(8)),
            bit_field: node.bit_size.is_some(),
            type_text: String::new(),
            declaration: String::new(),
            shape: Shape::Other(String::new()),
            embeds: Vec::new(),
            members: Vec::new(),
            place: self.place(node),
        };
        if let Some((inner, text)) = self.speller.anonymous(node.ty)? {
            member.members = self.members(inner, bit_offset, nesting + 1)?;
            member.declaration = format!("{text} {name}").trim_end().to_owned();
            member.type_text = text;
            return Ok(member);
        }
        member.shape = self.shape(node.ty)?;
        member.type_text = self.speller.declare(node.ty, "")?;
        member.declaration = self.speller.declare(node.ty, name)?;
        if let Some(bits) = node.bit_size {
            member.declaration.push_str(&format!(" : {bits}"));
        }
        member.embeds = self.keys(self.speller.embeds(node.ty)?)?;
        Ok(member)
    }

    fn variables(&self) -> Result<Vec<Variable>, LayoutError> {
        let mut variables: Vec<Variable> = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new(); // variables of file scope
        let mut ordinals: HashMap<(String, String), u32> = HashMap::new();
        for (id, node) in self.tree.iter().filter(|(_, n)| n.tag == dw::DW_TAG_variable) {
            let origin = self.tree.node(self.tree.origin(id)?);
            let Some(name) = origin.name else { continue };
            let function = self.tree.scope(id)?;
            // A static local has its address where it is declared; copies of its function only refer to it.
            let is_copy = function.is_some() && origin.offset != node.offset && origin.address.is_some();
            if is_copy || (function.is_some() && node.address.is_none()) {
                continue;
            }
            let mut variable = self.variable(node, origin, function)?;
            match function {
                Some(function) => {
                    let next = ordinals.entry((function.to_owned(), name.to_owned())).or_default();
                    variable.ordinal = *next;
                    *next += 1;
                }
                None => match known.get(name) {
                    Some(&index) if variables[index].defined => continue,
                    Some(&index) => {
                        variables[index] = variable;
                        continue;
                    }
                    None => {
                        known.insert(name.to_owned(), variables.len());
                    }
                },
            }
            variables.push(variable);
        }
        Ok(variables)
    }

    fn variable(&self, node: &Node<'a>, origin: &Node<'a>, function: Option<&str>) -> Result<Variable, LayoutError> {
        let ty = node.ty.or(origin.ty);
        Ok(Variable {
            name: origin.name.unwrap_or_default().to_owned(),
            function: function.map(str::to_owned),
            ordinal: 0,
            type_text: self.speller.declare(ty, "")?,
            shape: self.shape(ty)?,
            size: self.speller.size(ty)?,
            defined: node.address.is_some(),
            external: node.external || origin.external,
            embeds: self.keys(self.speller.embeds(ty)?)?,
            place: self.place(node).or_else(|| self.place(origin)),
        })
    }

    /// The type with a name at an offset of the unit.
    pub(super) fn type_at(&self, offset: usize) -> Result<TypeLayout, LayoutError> {
        let id = self.tree.at(offset)?;
        let key = self.key(id)?.ok_or(LayoutError::Reference { offset })?;
        self.layout(id, self.tree.node(id), key)
    }

    /// The variable of file scope at an offset of the unit.
    pub(super) fn variable_at(&self, offset: usize) -> Result<Variable, LayoutError> {
        let id = self.tree.at(offset)?;
        self.variable(self.tree.node(id), self.tree.node(self.tree.origin(id)?), None)
    }

    fn functions(&self) -> Result<Vec<Function>, LayoutError> {
        let mut functions = Vec::new();
        for (id, node) in self.tree.iter().filter(|(_, n)| n.tag == dw::DW_TAG_subprogram) {
            // A concrete copy of an inlined function repeats it (DWARF 5, section 3.3.8.3).
            let origin = self.tree.node(self.tree.origin(id)?);
            if node.declaration || origin.inline && origin.offset != node.offset || !(node.has_code() || node.inline) {
                continue;
            }
            let Some(name) = origin.name else { continue };
            let returns = node.ty.or(origin.ty);
            let parameters = self.speller.parameters(id)?;
            let declarator = format!("{name}({})", list(&parameters, node.prototyped || origin.prototyped));
            functions.push(Function {
                name: name.to_owned(),
                returns: self.speller.declare(returns, "")?,
                declaration: self.speller.declare(returns, &declarator)?,
                parameters,
                uses: self.used_types(id)?,
                external: node.external || origin.external,
                place: self.place(node).or_else(|| self.place(origin)),
            });
        }
        Ok(functions)
    }

    fn place(&self, node: &Node<'_>) -> Option<Place> {
        let file = self.files.path(node.decl_file?)?;
        Some(Place { file, line: node.decl_line? })
    }
}

/// Offset of a member in bits within its struct or union; one of a union has none stated.
fn offset_in_bits(node: &Node<'_>, type_size: u64) -> u64 {
    let bytes = node.location.unwrap_or(0).wrapping_mul(8);
    match (node.data_bit_offset, node.old_bit_offset, node.bit_size) {
        (Some(bits), _, _) => bytes.wrapping_add(bits),
        // Little-endian: from the top of the storage unit down (DWARF 4, section 5.5.6).
        (None, Some(from_top), Some(bits)) => {
            let unit = node.byte_size.unwrap_or(type_size).wrapping_mul(8);
            bytes.wrapping_add(unit.wrapping_sub(from_top).wrapping_sub(bits))
        }
        _ => bytes,
    }
}
