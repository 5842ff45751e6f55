//! What a header brings that takes in more than before.
//!
//! Comes in: the graph, and the new `#include`s of a header. Decided: which files may be taken in by them that were not
//! there already, whatever unit takes in the header. Goes out: these files and all they declare, or why that cannot be
//! told and the header counts as a whole.

use super::graph::{FileId, Graph};
use super::scan::resolve;
use diff_analyzer::declarations::items::{ItemKind, Items, items};
use diff_analyzer::declarations::lex::{directive, tokens};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Files that new includes bring.
#[derive(Debug, Default)]
pub struct Brought {
    /// The files.
    pub files: BTreeSet<FileId>,
    /// All that they declare, and whether it is a macro.
    pub names: BTreeMap<Vec<u8>, bool>,
}

/// What the items `new` of a header, which are includes, bring. `after` is the header's new text.
pub fn brought(graph: &Graph, header: FileId, after: &Items<'_>, new: &[usize]) -> Result<Brought, &'static str> {
    let mut brought = Brought::default();
    let folder = graph.files()[header].path.parent().unwrap_or(Path::new(""));
    let targets = |index: usize| -> Option<Vec<FileId>> {
        let token = after.tokens_of(&after.list[index]).next()?;
        resolve(graph, directive(token.text).1, folder).iter().map(|path| graph.at(path)).collect()
    };
    for &index in new {
        let files = targets(index).filter(|files| !files.is_empty());
        let files = files.ok_or("it includes a file that no unit takes in yet")?;
        let earlier = (0..index).filter(|&index| after.list[index].kind == ItemKind::Include);
        let earlier: Vec<FileId> = earlier.filter_map(|index| targets(index)?.first().copied()).collect();
        let mut there = graph.before(header, &earlier);
        there.insert(header);
        brought.files.extend(graph.parts_without(files, &there));
    }
    let is_macro = |name: &[u8]| graph.is_macro(name);
    for &file in &brought.files {
        let tokens = tokens(graph.files()[file].text());
        for item in items(&tokens, &is_macro).list {
            if item.kind == ItemKind::Active {
                return Err("it includes something more than declarations, macros and inline functions");
            }
            brought.names.extend(item.names.iter().map(|name| (name.to_vec(), item.kind == ItemKind::Macro)));
        }
    }
    Ok(brought)
}
