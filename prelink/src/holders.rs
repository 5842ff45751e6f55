//! Where objects of a type lie besides the heap.
//!
//! Comes in: the units of a kernel, and a type. Decided: which variables are made of it, which other types contain it, and which
//! functions have one on their stack: by value, through typedefs, qualifiers, arrays, and structs without a name. Goes out:
//! [`Found`]. A pointer to the type holds no object.
//!
//! Units that do not define the type cannot hold one, and are not read beyond the names of their types.

use crate::dwarf::DwarfError;
use crate::profile::defined_in;
use crate::units::{UnitId, UnitIndex};
use diff_analyzer::dwarf_layout::LayoutError;
use diff_analyzer::dwarf_layout::sections::{self, ObjectDebug};
use diff_analyzer::dwarf_layout::tree::{Node, NodeId, Tree};
use gimli::constants as dw;
use rayon::prelude::*;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::{self, Display, Formatter};

/// What holds an object of a type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// A variable that is one, or an array of them.
    Variable(String),
    /// Another type.
    Member {
        /// The type.
        of: String,
        /// Its member.
        member: String,
    },
    /// A local variable, parameter or result of a function.
    Local {
        /// The function.
        function: String,
        /// The variable or parameter; empty for the result.
        name: String,
    },
}

impl Display for Holder {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "variable `{name}`"),
            Self::Member { of, member } => write!(f, "member `{member}` of `{of}`"),
            Self::Local { function, name } if name.is_empty() => write!(f, "the result of `{function}`"),
            Self::Local { function, name } => write!(f, "`{name}` of function `{function}`"),
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Units that were looked at.
    pub units: usize,
    /// Units among them that define the type.
    pub defining: usize,
    /// What holds objects, and a unit where it does.
    pub holders: BTreeSet<(Holder, String)>,
}

/// What holds objects of a struct, which is `key` (`struct page`) and has so many bytes, in all units. A type of the same name and
/// another size is another type.
///
/// # Errors
/// [`DwarfError`] when the DWARF is malformed.
pub fn of(index: &UnitIndex<'_>, key: &str, size: u64) -> Result<Found, DwarfError> {
    let keys = BTreeSet::from([key]);
    let units: Vec<UnitId> = index.iter().filter(|unit| unit.is_c()).map(|unit| unit.id).collect();
    let look = |&id: &UnitId| -> Result<Option<Found>, DwarfError> {
        if defined_in(index, id, &keys)?.is_empty() {
            return Ok(None);
        }
        let unit = index.unit(id);
        let (_, tree) = unit.tree(index)?;
        let Some(holders) = in_unit(&tree, key, size).map_err(|source| unit.error(source))? else { return Ok(None) };
        let holders = holders.into_iter().map(|holder| (holder, unit.name.clone())).collect();
        Ok(Some(Found { units: 0, defining: 1, holders }))
    };
    let found = units.par_iter().map(look).collect::<Result<Vec<_>, DwarfError>>()?;
    let mut all = Found { units: units.len(), ..Found::default() };
    for found in found.into_iter().flatten() {
        all.defining += found.defining;
        for (holder, unit) in found.holders {
            // A holder of a header is found in every unit that sees it.
            if !all.holders.iter().any(|(known, _)| *known == holder) {
                all.holders.insert((holder, unit));
            }
        }
    }
    Ok(all)
}

/// Of an object with debug information, as a compiler has written it.
///
/// # Errors
/// [`LayoutError`] when the DWARF cannot be used.
pub fn of_object(bytes: &[u8], key: &str, size: u64) -> Result<BTreeSet<Holder>, LayoutError> {
    let debug = ObjectDebug::read(bytes)?;
    let dwarf = sections::dwarf_of(&debug);
    let mut holders = BTreeSet::new();
    let mut units = dwarf.units();
    while let Some(header) = units.next()? {
        let tree = Tree::read(&dwarf, &dwarf.unit(header)?)?;
        holders.extend(in_unit(&tree, key, size)?.unwrap_or_default());
    }
    Ok(holders)
}

/// Of one unit; none when it has another type of that name.
fn in_unit(tree: &Tree<'_>, key: &str, size: u64) -> Result<Option<BTreeSet<Holder>>, LayoutError> {
    let bare = key.strip_prefix("struct ").unwrap_or(key);
    let is_type = |node: &Node<'_>| {
        node.tag == dw::DW_TAG_structure_type
            && node.name == Some(bare)
            && !node.declaration
            && node.byte_size == Some(size)
    };
    let definitions: Vec<usize> = tree.iter().filter(|(_, node)| is_type(node)).map(|(_, node)| node.offset).collect();
    if definitions.is_empty() {
        return Ok(None);
    }
    let mut by_type: HashMap<usize, Vec<NodeId>> = HashMap::new();
    for (id, node) in tree.iter() {
        if let Some(ty) = node.ty {
            by_type.entry(ty).or_default().push(id);
        }
    }
    let mut search = Search { tree, by_type, seen: HashSet::new(), holders: BTreeSet::new() };
    // The type or one that contains it without having a name itself, and the member that holds the object.
    let mut left: Vec<(usize, Option<String>)> = definitions.into_iter().map(|offset| (offset, None)).collect();
    while let Some((offset, member)) = left.pop() {
        if search.seen.insert(offset) {
            search.users(offset, member.as_deref(), &mut left)?;
        }
    }
    Ok(Some(search.holders))
}

struct Search<'t, 'a> {
    tree: &'t Tree<'a>,
    /// What is of the type at an offset.
    by_type: HashMap<usize, Vec<NodeId>>,
    seen: HashSet<usize>,
    holders: BTreeSet<Holder>,
}

impl Search<'_, '_> {
    /// What is made of the type at `offset` by value; types that have no name of their own are left to be looked at.
    fn users(
        &mut self,
        offset: usize,
        member: Option<&str>,
        left: &mut Vec<(usize, Option<String>)>,
    ) -> Result<(), LayoutError> {
        for id in self.by_type.remove(&offset).unwrap_or_default() {
            let node = self.tree.node(id);
            let name = || node.name.unwrap_or_default().to_owned();
            // A function that is only declared here has its variables elsewhere.
            if node.declaration && node.tag == dw::DW_TAG_subprogram
                || node.tag == dw::DW_TAG_formal_parameter && self.tree.node(node.parent).declaration
            {
                continue;
            }
            let holder = match node.tag {
                dw::DW_TAG_typedef if member.is_some() && node.name.is_some() => {
                    Holder::Member { of: name(), member: member.unwrap_or_default().to_owned() }
                }
                dw::DW_TAG_typedef
                | dw::DW_TAG_const_type
                | dw::DW_TAG_volatile_type
                | dw::DW_TAG_atomic_type
                | dw::DW_TAG_array_type => {
                    left.push((node.offset, member.map(str::to_owned)));
                    continue;
                }
                dw::DW_TAG_member => {
                    let whole = self.tree.node(node.parent);
                    let path = match (node.name, member) {
                        (Some(name), Some(inner)) => format!("{name}.{inner}"),
                        (name, inner) => name.or(inner).unwrap_or_default().to_owned(),
                    };
                    let Some(of) = whole.name else {
                        left.push((whole.offset, Some(path)));
                        continue;
                    };
                    let keyword = if whole.tag == dw::DW_TAG_union_type { "union" } else { "struct" };
                    Holder::Member { of: format!("{keyword} {of}"), member: path }
                }
                dw::DW_TAG_variable | dw::DW_TAG_formal_parameter => match self.tree.scope(id)? {
                    Some(function) if node.address.is_none() => {
                        Holder::Local { function: function.to_owned(), name: name() }
                    }
                    // Of a type of functions.
                    None if node.tag == dw::DW_TAG_formal_parameter => continue,
                    _ => Holder::Variable(name()),
                },
                dw::DW_TAG_subprogram => Holder::Local { function: name(), name: String::new() },
                _ => continue,
            };
            self.holders.insert(holder);
        }
        Ok(())
    }
}
