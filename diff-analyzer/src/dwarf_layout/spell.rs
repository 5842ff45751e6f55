//! Types as C writes them, their sizes and alignments.
//!
//! Comes in: the tree of a unit. Decided: where the name stands in a declaration, which qualifiers are kept, how large a
//! type is. Goes out: text, bytes. Recursion and the amount of text are bounded, so that no input runs away.

use super::LayoutError;
use super::tree::{Node, NodeId, Tree};
use gimli::constants as dw;
use std::cell::Cell;
use std::collections::HashMap;

/// Nesting beyond this is taken for a circle; C itself promises 63 levels of declarators (C11, section 5.2.4.1).
const MAX_DEPTH: u32 = 100;
/// Entries that one declaration may visit.
const MAX_STEPS: u32 = 100_000;

/// Spells and measures the types of one tree.
pub(super) struct Speller<'t, 'a> {
    tree: &'t Tree<'a>,
    /// Anonymous structs, unions and enums that a typedef names.
    typedef_names: HashMap<NodeId, &'a str>,
    steps: Cell<u32>,
    aligns: std::cell::RefCell<HashMap<NodeId, Option<u64>>>,
}

impl<'t, 'a> Speller<'t, 'a> {
    pub(super) fn new(tree: &'t Tree<'a>) -> Result<Self, LayoutError> {
        let mut typedef_names = HashMap::new();
        for (_, node) in tree.iter() {
            if node.tag == dw::DW_TAG_typedef
                && let (Some(name), Some(target)) = (node.name, node.ty)
            {
                let target = tree.at(target)?;
                if tree.node(target).is_aggregate() && tree.node(target).name.is_none() {
                    typedef_names.entry(target).or_insert(name);
                }
            }
        }
        Ok(Self { tree, typedef_names, steps: Cell::new(0), aligns: Default::default() })
    }

    /// The typedef that names an anonymous struct, union or enum.
    pub(super) fn typedef_name(&self, id: NodeId) -> Option<&'a str> {
        self.typedef_names.get(&id).copied()
    }

    /// A declaration of `name` with the type at an offset; the type alone when the name is empty.
    pub(super) fn declare(&self, ty: Option<usize>, name: &str) -> Result<String, LayoutError> {
        self.steps.set(0);
        self.spell(ty, name.to_owned(), 0)
    }

    /// Parameter types of a function or function type; `void` is an empty list.
    pub(super) fn parameters(&self, id: NodeId) -> Result<Vec<String>, LayoutError> {
        self.steps.set(0);
        self.parameters_at(id, 0)
    }

    fn parameters_at(&self, id: NodeId, depth: u32) -> Result<Vec<String>, LayoutError> {
        let mut parameters = Vec::new();
        for (child, node) in self.tree.children(id) {
            match node.tag {
                dw::DW_TAG_formal_parameter => {
                    let ty = self.tree.node(self.tree.origin(child)?).ty;
                    parameters.push(self.spell(ty, String::new(), depth + 1)?);
                }
                dw::DW_TAG_unspecified_parameters => parameters.push("...".to_owned()),
                _ => {}
            }
        }
        Ok(parameters)
    }

    fn visit(&self, node: &Node<'_>, depth: u32) -> Result<(), LayoutError> {
        self.steps.set(self.steps.get() + 1);
        if depth > MAX_DEPTH || self.steps.get() > MAX_STEPS {
            return Err(LayoutError::TooDeep { offset: node.offset });
        }
        Ok(())
    }

    fn spell(&self, ty: Option<usize>, inner: String, depth: u32) -> Result<String, LayoutError> {
        let mut qualifiers = Vec::new();
        let mut next = ty;
        let id = loop {
            let Some(offset) = next else {
                return Ok(qualified(&qualifiers, join("void", &inner)));
            };
            let id = self.tree.at(offset)?;
            let node = self.tree.node(id);
            self.visit(node, depth + qualifiers.len() as u32)?;
            qualifiers.push(match node.tag {
                dw::DW_TAG_const_type => "const",
                dw::DW_TAG_volatile_type => "volatile",
                dw::DW_TAG_restrict_type => "restrict",
                dw::DW_TAG_atomic_type => "_Atomic",
                _ => break id,
            });
            next = node.ty;
        };
        let node = self.tree.node(id);
        let deeper = depth + 1;
        match node.tag {
            dw::DW_TAG_pointer_type => {
                let space = if qualifiers.is_empty() || inner.is_empty() { "" } else { " " };
                self.spell(node.ty, format!("*{}{space}{inner}", qualifiers.join(" ")), deeper)
            }
            dw::DW_TAG_array_type => {
                let mut inner = wrap(inner);
                for (_, dimension) in self.tree.children(id).filter(|(_, n)| n.tag == dw::DW_TAG_subrange_type) {
                    inner.push_str(&dimension.count.map_or("[]".to_owned(), |count| format!("[{count}]")));
                }
                // Qualifiers of an array are those of its elements (C11, section 6.7.3), and gcc states both.
                let element = match node.ty {
                    Some(offset) => self.tree.node(self.tree.at(offset)?).tag,
                    None => dw::DW_TAG_unspecified_type,
                };
                if matches!(element, dw::DW_TAG_const_type | dw::DW_TAG_volatile_type) {
                    qualifiers.clear();
                }
                Ok(qualified(&qualifiers, self.spell(node.ty, inner, deeper)?))
            }
            dw::DW_TAG_subroutine_type => {
                let parameters = self.parameters_at(id, deeper)?;
                self.spell(node.ty, format!("{}({})", wrap(inner), list(&parameters, node.prototyped)), deeper)
            }
            _ => Ok(qualified(&qualifiers, join(&self.base(id, deeper)?, &inner))),
        }
    }

    fn base(&self, id: NodeId, depth: u32) -> Result<String, LayoutError> {
        let node = self.tree.node(id);
        match (node.name, self.typedef_name(id)) {
            (Some(name), _) => Ok(match keyword(node) {
                Some(keyword) => format!("{keyword} {name}"),
                None => name.to_owned(),
            }),
            (None, Some(name)) => Ok(name.to_owned()),
            (None, None) => self.body(id, depth),
        }
    }

    /// An anonymous struct, union or enum, spelled out.
    fn body(&self, id: NodeId, depth: u32) -> Result<String, LayoutError> {
        let node = self.tree.node(id);
        let Some(keyword) = keyword(node) else { return Ok("void".to_owned()) };
        let mut parts = Vec::new();
        for (_, child) in self.tree.children(id) {
            self.visit(child, depth)?;
            match child.tag {
                dw::DW_TAG_enumerator => {
                    parts.push(format!("{} = {}", child.name.unwrap_or_default(), child.value.unwrap_or_default()));
                }
                dw::DW_TAG_member => {
                    let bits = child.bit_size.map_or(String::new(), |bits| format!(" : {bits}"));
                    let name = child.name.unwrap_or_default().to_owned();
                    parts.push(format!("{}{bits};", self.spell(child.ty, name, depth + 1)?));
                }
                _ => {}
            }
        }
        let separator = if keyword == "enum" { ", " } else { " " };
        Ok(format!("{keyword} {{ {} }}", parts.join(separator)))
    }

    /// Size in bytes; absent for an incomplete type.
    pub(super) fn size(&self, ty: Option<usize>) -> Result<Option<u64>, LayoutError> {
        let mut factor = 1_u64;
        let mut next = ty;
        for _ in 0..MAX_DEPTH {
            let Some(offset) = next else { return Ok(None) };
            let id = self.tree.at(offset)?;
            let node = self.tree.node(id);
            if node.tag == dw::DW_TAG_array_type && node.byte_size.is_none() {
                for (_, dimension) in self.tree.children(id).filter(|(_, n)| n.tag == dw::DW_TAG_subrange_type) {
                    let Some(count) = dimension.count else { return Ok(None) };
                    factor = factor.saturating_mul(count);
                }
            } else if let Some(size) = node.byte_size {
                return Ok(Some(size.saturating_mul(factor)));
            } else if !is_alias(node) {
                return Ok(None);
            }
            next = node.ty;
        }
        Err(LayoutError::TooDeep { offset: ty.unwrap_or_default() })
    }

    /// Natural alignment in bytes of a type, or the one an attribute states.
    pub(super) fn align(&self, ty: Option<usize>) -> Result<u64, LayoutError> {
        self.align_at(ty, 0)
    }

    fn align_at(&self, ty: Option<usize>, depth: u32) -> Result<u64, LayoutError> {
        let mut next = ty;
        for _ in 0..MAX_DEPTH {
            let Some(offset) = next else { return Ok(1) };
            let id = self.tree.at(offset)?;
            let node = self.tree.node(id);
            if let Some(align) = node.alignment {
                return Ok(align.max(1));
            }
            match node.tag {
                dw::DW_TAG_structure_type | dw::DW_TAG_union_type => return self.aggregate_align_at(id, depth + 1),
                _ if node.tag == dw::DW_TAG_array_type || is_alias(node) => next = node.ty,
                _ => return Ok(node.byte_size.unwrap_or(1).clamp(1, 16)),
            }
        }
        Err(LayoutError::TooDeep { offset: ty.unwrap_or_default() })
    }

    /// Alignment in bytes of a struct or union: the largest of its members' that all offsets and the size agree with.
    pub(super) fn align_of_aggregate(&self, id: NodeId) -> Result<u64, LayoutError> {
        self.aggregate_align_at(id, 0)
    }

    fn aggregate_align_at(&self, id: NodeId, depth: u32) -> Result<u64, LayoutError> {
        let node = self.tree.node(id);
        if depth > MAX_DEPTH {
            return Err(LayoutError::TooDeep { offset: node.offset });
        }
        if let Some(align) = node.alignment {
            return Ok(align.max(1));
        }
        match self.aligns.borrow().get(&id) {
            Some(Some(align)) => return Ok(*align),
            Some(None) => return Err(LayoutError::TooDeep { offset: node.offset }), // contains itself
            None => {}
        }
        self.aligns.borrow_mut().insert(id, None);
        let size = node.byte_size.unwrap_or(0);
        let mut align = 1;
        for (_, member) in self.tree.children(id).filter(|(_, n)| n.tag == dw::DW_TAG_member) {
            let natural = match member.alignment {
                Some(stated) => stated,
                None => self.align_at(member.ty, depth)?,
            };
            let misplaced = member.location.is_some_and(|location| !location.is_multiple_of(natural.max(1)));
            if !misplaced && size.is_multiple_of(natural.max(1)) {
                align = align.max(natural);
            }
        }
        self.aligns.borrow_mut().insert(id, Some(align));
        Ok(align)
    }

    /// The anonymous struct or union that a member's type is, seen through qualifiers, and its text without contents.
    pub(super) fn anonymous(&self, ty: Option<usize>) -> Result<Option<(NodeId, String)>, LayoutError> {
        let mut qualifiers = Vec::new();
        let mut next = ty;
        for _ in 0..MAX_DEPTH {
            let Some(offset) = next else { return Ok(None) };
            let id = self.tree.at(offset)?;
            let node = self.tree.node(id);
            match node.tag {
                dw::DW_TAG_const_type => qualifiers.push("const"),
                dw::DW_TAG_volatile_type => qualifiers.push("volatile"),
                dw::DW_TAG_structure_type | dw::DW_TAG_union_type => {
                    if node.name.is_some() || self.typedef_name(id).is_some() {
                        return Ok(None);
                    }
                    let keyword = keyword(node).unwrap_or_default();
                    return Ok(Some((id, qualified(&qualifiers, format!("{keyword} {{ ... }}")))));
                }
                _ => return Ok(None),
            }
            next = node.ty;
        }
        Err(LayoutError::TooDeep { offset: ty.unwrap_or_default() })
    }

    /// Nodes of the named types that a type contains by value: through typedefs, qualifiers, arrays and anonymous members.
    pub(super) fn embeds(&self, ty: Option<usize>) -> Result<Vec<NodeId>, LayoutError> {
        self.steps.set(0);
        let mut found = Vec::new();
        self.embeds_at(ty, 0, &mut found)?;
        Ok(found)
    }

    fn embeds_at(&self, ty: Option<usize>, depth: u32, found: &mut Vec<NodeId>) -> Result<(), LayoutError> {
        let mut next = ty;
        while let Some(offset) = next {
            let id = self.tree.at(offset)?;
            let node = self.tree.node(id);
            self.visit(node, depth)?;
            if node.is_aggregate() {
                if self.anonymous(Some(offset))?.is_none() {
                    found.push(id);
                    return Ok(());
                }
                for (_, member) in self.tree.children(id).filter(|(_, n)| n.tag == dw::DW_TAG_member) {
                    self.embeds_at(member.ty, depth + 1, found)?;
                }
                return Ok(());
            }
            match node.tag {
                dw::DW_TAG_typedef => found.push(id),
                dw::DW_TAG_array_type => {}
                _ if is_alias(node) => {}
                _ => return Ok(()),
            }
            next = node.ty;
        }
        Ok(())
    }
}

/// The keyword of a struct, union or enum.
pub(super) fn keyword(node: &Node<'_>) -> Option<&'static str> {
    match node.tag {
        dw::DW_TAG_structure_type => Some("struct"),
        dw::DW_TAG_union_type => Some("union"),
        dw::DW_TAG_enumeration_type => Some("enum"),
        _ => None,
    }
}

/// A parameter list between its parentheses.
pub(super) fn list(parameters: &[String], prototyped: bool) -> String {
    if parameters.is_empty() && prototyped { "void".to_owned() } else { parameters.join(", ") }
}

fn is_alias(node: &Node<'_>) -> bool {
    matches!(
        node.tag,
        dw::DW_TAG_typedef
            | dw::DW_TAG_const_type
            | dw::DW_TAG_volatile_type
            | dw::DW_TAG_restrict_type
            | dw::DW_TAG_atomic_type
    )
}

fn qualified(qualifiers: &[&str], text: String) -> String {
    if qualifiers.is_empty() { text } else { format!("{} {text}", qualifiers.join(" ")) }
}

fn join(base: &str, inner: &str) -> String {
    if inner.is_empty() { base.to_owned() } else { format!("{base} {inner}") }
}

/// A declarator that something is appended to: pointers bind less tightly than `[]` and `()`.
fn wrap(inner: String) -> String {
    if inner.starts_with('*') { format!("({inner})") } else { inner }
}
