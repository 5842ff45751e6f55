//! What a unit's DWARF says about types, variables and functions.
//!
//! Comes in: a relocatable object, or one unit of a linked image, in DWARF 4 or 5. Decided: which entries define a type
//! and which only declare it, where each member lies, how a type is written. Goes out: [`Layouts`], plain values that
//! [`crate::layout_diff`] compares and the guest profile is taken from.
//!
//! DWARF does not record `packed`: an alignment that no attribute states is inferred from where the members lie.

mod collect;
pub mod sections;
mod shape;
mod spell;
pub mod tree;

pub use shape::Shape;

use gimli::{Dwarf, Unit};
use sections::{DebugSource, ObjectDebug, SectionsError, Slice, dwarf_of};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Display, Formatter};

/// Why layouts could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The object's sections could not be prepared.
    #[error(transparent)]
    Sections(#[from] SectionsError),
    /// DWARF that cannot be parsed.
    #[error("malformed DWARF")]
    Dwarf(#[from] gimli::Error),
    /// Entries that do not form a tree.
    #[error("malformed DWARF: the entry at {offset:#x} does not fit into the tree of the unit")]
    Structure {
        /// Offset in the unit.
        offset: usize,
    },
    /// A name that is not UTF-8.
    #[error("malformed DWARF: the name of the entry at {offset:#x} is not UTF-8")]
    Name {
        /// Offset in the unit.
        offset: usize,
    },
    /// A reference to something that is no type, function or variable.
    #[error("malformed DWARF: a reference to {offset:#x} of the unit, where no type, function or variable is")]
    Reference {
        /// Offset in the unit that is referred to.
        offset: usize,
    },
    /// A reference out of the unit.
    #[error(
        "the entry at {offset:#x} refers to another unit (link-time optimisation, dwz or -fdebug-types-section): \
         this form of DWARF is not supported; use the debug image as the kernel's build makes it"
    )]
    OtherUnit {
        /// Offset in the unit.
        offset: usize,
    },
    /// A member whose place is computed.
    #[error("malformed DWARF: the member at {offset:#x} has no constant offset")]
    MemberLocation {
        /// Offset in the unit.
        offset: usize,
    },
    /// Types that contain themselves, or are nested beyond reason.
    #[error("malformed DWARF: the entry at {offset:#x} is part of a circle or is nested too deeply")]
    TooDeep {
        /// Offset in the unit.
        offset: usize,
    },
}

/// Where something is declared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Place {
    /// File as the compiler was given it, cleaned of `.` and `..`.
    pub file: String,
    /// Line, from 1.
    pub line: u64,
}

impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What a type is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TypeKind {
    /// `struct`.
    Struct,
    /// `union`.
    Union,
    /// `enum`.
    Enum,
    /// A typedef of anything but an anonymous struct, union or enum.
    Typedef,
}

/// A defined type.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TypeLayout {
    /// The key in [`Layouts::types`].
    pub name: String,
    /// What it is.
    pub kind: TypeKind,
    /// Size in bytes.
    pub size: u64,
    /// Alignment in bytes: as stated, else the largest natural one that the members agree with.
    pub align: u64,
    /// Members of a struct or union, in order of declaration.
    pub members: Vec<Member>,
    /// Enumerators of an enum, in order of declaration.
    pub enumerators: Vec<(String, i128)>,
    /// What a typedef stands for; the underlying integer of an enum.
    pub target: Option<String>,
    /// Types contained by value in a typedef.
    pub embeds: Vec<String>,
    /// Where it is declared.
    pub place: Option<Place>,
}

/// A member of a struct or union.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Member {
    /// Name; empty for an anonymous member.
    pub name: String,
    /// Offset in bits from the start of the outermost type that has a name.
    pub bit_offset: u64,
    /// Size in bits; 0 for a flexible array.
    pub bit_size: u64,
    /// Whether it is a bit-field.
    pub bit_field: bool,
    /// Its type, spelled in C; `struct { ... }` when [`Member::members`] has the contents.
    pub type_text: String,
    /// Its declaration, spelled in C, without the semicolon.
    pub declaration: String,
    /// What it is made of; of an anonymous struct or union [`Member::members`] say that.
    #[serde(skip)]
    pub shape: Shape,
    /// Keys of the types it contains by value (through typedefs and arrays).
    pub embeds: Vec<String>,
    /// Members of an anonymous struct or union, in place.
    pub members: Vec<Member>,
    /// Where it is declared.
    pub place: Option<Place>,
}

/// A member that is not itself an anonymous struct or union, under its path.
#[derive(Debug, Clone)]
pub struct Leaf<'a> {
    /// Path as C writes it: `u.raw`, or `flags` inside an anonymous member.
    pub path: String,
    /// The member.
    pub member: &'a Member,
}

/// A variable with static storage, or the declaration of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Name.
    pub name: String,
    /// Function that it is local to.
    pub function: Option<String>,
    /// Which of the function's locals of that name it is, from 0, in order of declaration.
    pub ordinal: u32,
    /// Its type, spelled in C.
    pub type_text: String,
    /// What it is made of.
    pub shape: Shape,
    /// Size in bytes, when the type is complete.
    pub size: Option<u64>,
    /// Whether this unit defines it (it has an address here).
    pub defined: bool,
    /// Whether it is visible to other units.
    pub external: bool,
    /// Keys of the types it contains by value (through typedefs and arrays).
    pub embeds: Vec<String>,
    /// Where it is declared.
    pub place: Option<Place>,
}

/// A function that the unit defines, inlined or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Name.
    pub name: String,
    /// Return type, spelled in C.
    pub returns: String,
    /// Parameter types, spelled in C; `...` for more.
    pub parameters: Vec<String>,
    /// The whole declaration, spelled in C, without parameter names.
    pub declaration: String,
    /// Keys of the structs, unions and enums that its parameters and variables are made of or point to.
    pub uses: BTreeSet<String>,
    /// Whether it is visible to other units.
    pub external: bool,
    /// Where it is declared.
    pub place: Option<Place>,
}

/// All a unit says about types, variables and functions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layouts {
    /// Types with a definition, by key: `struct x`, `union x`, `enum x`, the name of a typedef, `enum { FIRST }` for an
    /// anonymous enum by its first enumerator; with ` in f()` behind it when local to a function.
    pub types: BTreeMap<String, TypeLayout>,
    /// Types that are declared and not defined.
    pub declarations: BTreeSet<String>,
    /// Globals, statics and static locals, in order of declaration.
    pub variables: Vec<Variable>,
    /// Functions, in order of declaration.
    pub functions: Vec<Function>,
}

impl TypeLayout {
    /// All members that are not anonymous structs or unions, those inside such ones included.
    pub fn leaves(&self) -> Vec<Leaf<'_>> {
        let mut leaves = Vec::new();
        collect_leaves(&self.members, "", &mut leaves);
        leaves
    }

    /// The member at a path such as `list.next` of an anonymous member, or `flags`.
    pub fn member(&self, path: &str) -> Option<&Member> {
        self.leaves().into_iter().find(|leaf| leaf.path == path).map(|leaf| leaf.member)
    }
}

fn collect_leaves<'a>(members: &'a [Member], prefix: &str, leaves: &mut Vec<Leaf<'a>>) {
    for member in members {
        let unnamed = member.name.is_empty();
        if !member.members.is_empty() {
            let inner = if unnamed { prefix.to_owned() } else { format!("{prefix}{}.", member.name) };
            collect_leaves(&member.members, &inner, leaves);
        } else if !unnamed {
            leaves.push(Leaf { path: format!("{prefix}{}", member.name), member });
        } else if !member.embeds.is_empty() {
            // An unnamed member of a named type (gcc: -fms-extensions).
            leaves.push(Leaf { path: format!("{prefix}{}", member.type_text), member });
        }
    }
}

/// Layouts of all units of a relocatable object (the kernel's objects have one).
///
/// # Errors
/// [`LayoutError`] when the bytes are not such an object or its DWARF cannot be used.
pub fn of_object(bytes: &[u8]) -> Result<Layouts, LayoutError> {
    of_source(&ObjectDebug::read(bytes)?, |_| true)
}

/// `DW_AT_name` of the first unit of a relocatable object: its source file, as the compiler was given it.
pub fn unit_name(bytes: &[u8]) -> Option<String> {
    let source = ObjectDebug::read(bytes).ok()?;
    let dwarf = dwarf_of(&source);
    let header = dwarf.units().next().ok()??;
    let unit = dwarf.unit(header).ok()?;
    unit.name.map(|name| clean_path(&name.to_string_lossy()))
}

/// `DW_AT_producer` of the first unit of a relocatable object: compiler, version and options.
pub fn producer(bytes: &[u8]) -> Option<String> {
    let source = ObjectDebug::read(bytes).ok()?;
    let dwarf = dwarf_of(&source);
    let header = dwarf.units().next().ok()??;
    let unit = dwarf.unit(header).ok()?;
    let mut entries = unit.entries();
    entries.next_dfs().ok()??;
    let value = entries.current()?.attr_value(gimli::constants::DW_AT_producer)?;
    dwarf.attr_string(&unit, value).ok().map(|text| text.to_string_lossy().into_owned())
}

/// Layouts of the units of a source whose `DW_AT_name` is wanted.
///
/// # Errors
/// [`LayoutError`] when the DWARF cannot be used.
pub fn of_source<S: DebugSource + ?Sized>(source: &S, wanted: impl Fn(&str) -> bool) -> Result<Layouts, LayoutError> {
    let dwarf = dwarf_of(source);
    let mut layouts = Layouts::default();
    let mut units = dwarf.units();
    while let Some(header) = units.next()? {
        let unit = dwarf.unit(header)?;
        let name = unit.name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if wanted(&name) {
            layouts.absorb(of_unit(&dwarf, &unit)?);
        }
    }
    Ok(layouts)
}

/// Layouts of one unit.
///
/// # Errors
/// [`LayoutError`] when the DWARF cannot be used.
pub fn of_unit<'a>(dwarf: &Dwarf<Slice<'a>>, unit: &Unit<Slice<'a>>) -> Result<Layouts, LayoutError> {
    let tree = tree::Tree::read(dwarf, unit)?;
    collect::Collector::new(&tree, Files::new(dwarf, unit))?.layouts(|_| true)
}

/// Layouts of the types of one unit whose bare name (`task_struct`) is wanted; no variables or functions.
///
/// # Errors
/// [`LayoutError`] when the DWARF cannot be used.
pub fn types_of_unit<'a>(
    dwarf: &Dwarf<Slice<'a>>,
    unit: &Unit<Slice<'a>>,
    wanted: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, TypeLayout>, LayoutError> {
    let tree = tree::Tree::read(dwarf, unit)?;
    let mut layouts = Layouts::default();
    collect::Collector::new(&tree, Files::new(dwarf, unit))?.types(&mut layouts, wanted)?;
    Ok(layouts.types)
}

/// Layouts of the types and variables that one unit defines at some offsets of it, in the order of these. The tree has at
/// least the entries that these depend on.
///
/// # Errors
/// [`LayoutError`] when the DWARF cannot be used, or no type or variable with a name is at an offset.
pub(crate) fn at_offsets<'a>(
    dwarf: &Dwarf<Slice<'a>>,
    unit: &Unit<Slice<'a>>,
    tree: &tree::Tree<'a>,
    types: &[usize],
    variables: &[usize],
) -> Result<(Vec<TypeLayout>, Vec<Variable>), LayoutError> {
    let collector = collect::Collector::new(tree, Files::new(dwarf, unit))?;
    let types = types.iter().map(|&offset| collector.type_at(offset)).collect::<Result<_, _>>()?;
    let variables = variables.iter().map(|&offset| collector.variable_at(offset)).collect::<Result<_, _>>()?;
    Ok((types, variables))
}

impl Layouts {
    fn absorb(&mut self, other: Self) {
        for (name, layout) in other.types {
            self.types.entry(name).or_insert(layout);
        }
        self.declarations.extend(other.declarations);
        self.declarations.retain(|name| !self.types.contains_key(name));
        self.variables.extend(other.variables);
        self.functions.extend(other.functions);
    }
}

/// Paths of a unit's file table, each made when it is first asked for.
pub(crate) struct Files<'d, 'a> {
    dwarf: &'d Dwarf<Slice<'a>>,
    unit: &'d Unit<Slice<'a>>,
    known: RefCell<HashMap<u64, Option<String>>>,
}

impl<'d, 'a> Files<'d, 'a> {
    fn new(dwarf: &'d Dwarf<Slice<'a>>, unit: &'d Unit<Slice<'a>>) -> Self {
        Self { dwarf, unit, known: RefCell::default() }
    }

    /// The path of a file by its index; none when the table has no such file, or no readable name for it.
    fn path(&self, index: u64) -> Option<String> {
        if let Some(known) = self.known.borrow().get(&index) {
            return known.clone();
        }
        let path = self.read(index);
        self.known.borrow_mut().insert(index, path.clone());
        path
    }

    fn read(&self, index: u64) -> Option<String> {
        let header = self.unit.line_program.as_ref()?.header();
        // Before DWARF 5 files count from 1, and 0 is none.
        let file = header.file(index).filter(|_| index > 0 || header.version() >= 5)?;
        let name = self.dwarf.attr_string(self.unit, file.path_name()).ok()?;
        let mut path = name.to_string_lossy().into_owned();
        // Directory 0 is the folder of the compilation, to which all relative paths refer.
        if file.directory_index() != 0
            && let Some(directory) = file.directory(header)
        {
            path = join_path(&self.dwarf.attr_string(self.unit, directory).ok()?.to_string_lossy(), &path);
        }
        Some(clean_path(&path))
    }
}

/// `path` seen from `directory`, unless it is absolute.
pub fn join_path(directory: &str, path: &str) -> String {
    if path.starts_with('/') || directory.is_empty() { path.to_owned() } else { format!("{directory}/{path}") }
}

/// A path without `.`, `..` and doubled slashes, by its text alone; leading `..` of a relative path stay.
pub fn clean_path(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if path.starts_with('/') => {}
            _ => parts.push(part),
        }
    }
    let clean = parts.join("/");
    if path.starts_with('/') { format!("/{clean}") } else { clean }
}
