//! Who uses a datum of the image.
//!
//! Comes in: the image, and where the datum lies. Decided: from the image's relocations (in an image without them: from all
//! bytes that look like a reference), who refers to it. Goes out: a [`User`] for each reference that a running kernel still has.

use crate::vmlinux::KernelImage;
use std::ops::Range;

/// A reference to a datum, or into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User<'a> {
    /// Link address of the field that holds it.
    pub field: u64,
    /// Who has it.
    pub by: By<'a>,
}

/// Who has a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By<'a> {
    /// The table of exported symbols: any module.
    Modules,
    /// A function.
    Function(&'a str),
    /// Another datum.
    Datum(&'a str),
    /// A section, at a place without a symbol.
    Section(&'a str),
}

/// All users of what lies in a range. What is gone after boot does not count.
pub fn of<'a>(image: &'a KernelImage, range: &Range<u64>) -> Vec<User<'a>> {
    let user = |field: u64| {
        let section = image.section_at(field).map_or("", |section| section.name.as_str());
        if section.starts_with(".init.") || section.starts_with(".exit.") {
            return None;
        }
        let by = match image.symbols().containing(field) {
            _ if section.starts_with("__ksymtab") || section.starts_with("___ksymtab") => By::Modules,
            Some((name, _)) if section.starts_with(".text") || section.ends_with(".text") => By::Function(name),
            Some((name, _)) => By::Datum(name),
            None => By::Section(section),
        };
        Some(User { field, by })
    };
    image.references_into(range).into_iter().filter_map(user).collect()
}
