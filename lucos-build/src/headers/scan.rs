//! Reads the kernel's sources for their graph.
//!
//! Comes in: the kernel's units and the folders in which headers are looked for. Decided: which files each `#include`
//! may mean, and which names are pasted together where. Goes out: a [`Graph`] made anew.

use super::graph::{File, Graph, Maker, Roots};
use super::paste::{Part, Pasting, Pattern};
use super::shape::Shape;
use crate::kbuild::overlay::clean;
use diff_analyzer::declarations::lex::{Token, TokenKind, directive, directive_end, in_word, tokens, words};
use rayon::prelude::*;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// What the directives of a file say.
#[derive(Default)]
struct Scan {
    /// In any branch, and in comments.
    includes: Vec<Include>,
    macros: Vec<String>,
    /// Outside of comments: whether there is no condition, and whether it is an `#include_next`.
    ordered: Vec<(Include, bool, bool)>,
    guarded: bool,
}

/// An `#include` as written.
#[derive(Debug, PartialEq, Eq)]
enum Include {
    Quoted(PathBuf),
    Angled(PathBuf),
    /// By the expansion of a macro.
    Computed,
}

/// What a file includes.
struct Targets {
    any: Vec<PathBuf>,
    ordered: Vec<(PathBuf, bool)>,
}

/// Reads all files that the units may take in.
pub fn read(roots: &Roots<'_>) -> Graph {
    let absolute = |folder: &PathBuf| if folder.is_absolute() { folder.clone() } else { roots.build.join(folder) };
    let mut graph = Graph::default();
    graph.folders = roots.listing.folders.iter().map(absolute).collect();
    graph.more_folders = roots.listing.more_folders.iter().map(absolute).collect();
    let mut search = Search { folders: graph.folders.clone(), more: graph.more_folders.clone(), known: HashMap::new() };
    let forced: Vec<PathBuf> = roots.listing.forced.iter().map(absolute).collect();
    let mut next: BTreeSet<PathBuf> = forced.iter().cloned().collect();
    next.extend(roots.units.iter().flat_map(|unit| [clean(&roots.source.join(unit)), clean(&roots.build.join(unit))]));
    let mut ids: HashMap<PathBuf, usize> = HashMap::new();
    let mut targets: Vec<Targets> = Vec::new();
    while !next.is_empty() {
        let read: Vec<(File, Scan)> = std::mem::take(&mut next)
            .into_par_iter()
            .filter_map(|path| {
                let file = File::open(path)?;
                let scan = Scan::of(file.text());
                Some((file, scan))
            })
            .collect();
        for (mut file, scan) in read {
            graph.macros.extend(scan.macros);
            let folder = file.path.parent().unwrap_or(roots.source).to_owned();
            let mut found = Vec::new();
            for include in &scan.includes {
                let places = search.places(include, &folder);
                file.incomplete |= places.is_empty() && is_made(include, &file.path);
                found.extend(places);
            }
            let mut ordered = Vec::new();
            for (include, certain, next) in &scan.ordered {
                let mut places = search.places(include, &folder);
                // The compiler takes the first one, where every unit looks into the same folders.
                let known = !next && search.is_known(&places);
                places.truncate(if known { 1 } else { usize::MAX });
                ordered.extend(places.into_iter().map(|place| (place, *certain && known)));
            }
            file.guarded = scan.guarded;
            ids.insert(file.path.clone(), graph.files.len());
            graph.files.push(file);
            next.extend(found.iter().cloned());
            targets.push(Targets { any: found, ordered });
        }
        next.retain(|path| !ids.contains_key(path));
    }
    let forced: Vec<usize> = forced.iter().filter_map(|path| ids.get(path).copied()).collect();
    graph.forced = forced.clone();
    for (file, targets) in graph.files.iter_mut().zip(targets) {
        file.includes = targets.any.iter().filter_map(|path| ids.get(path).copied()).collect();
        file.ordered =
            targets.ordered.iter().filter_map(|(path, certain)| Some((ids.get(path).copied()?, *certain))).collect();
        // Every unit takes in the forced headers.
        if file.path.extension().is_some_and(|extension| extension == "c" || extension == "S") {
            file.includes.extend(forced.iter().copied());
        }
        file.includes.sort_unstable();
        file.includes.dedup();
    }
    paste(&mut graph);
    graph
}

/// Whether the build may make a header that is not there: one beside a unit, or beside a header of a single folder. What
/// the common headers name and nobody has belongs to other architectures and programs.
fn is_made(include: &Include, file: &Path) -> bool {
    let has = |name: &str| file.components().any(|part| part.as_os_str() == name);
    let common = has("include") && (has("linux") || has("acpi"));
    let header = file.extension().is_some_and(|extension| extension == "h");
    match include {
        Include::Computed => false,
        Include::Angled(_) => !header,
        Include::Quoted(_) => !header || !common,
    }
}

/// Finds the names that are pasted together.
fn paste(graph: &mut Graph) {
    let definitions: Vec<&[u8]> = (graph.files.par_iter())
        .flat_map_iter(|file| {
            directives(file.text()).filter_map(|line| {
                let (name, rest) = directive(line);
                (name == b"define").then_some(rest)
            })
        })
        .collect();
    let pasting = Pasting::of(&definitions);
    let mut made: Vec<(Pattern, Maker)> = (graph.files.par_iter().enumerate())
        .flat_map_iter(|(id, file)| {
            pasting.in_text(file.text()).into_iter().map(move |pattern| (pattern, Maker::File(id)))
        })
        .collect();
    made.extend(pasting.fixed().filter_map(|pasted| {
        Some((pasted.pattern.clone(), Maker::Macro(String::from_utf8(pasted.by.clone()?).ok()?)))
    }));
    for (pattern, maker) in made {
        match pattern.as_slice() {
            [] => {}
            [Part::Fixed(name)] => {
                let name = String::from_utf8_lossy(name).into_owned();
                graph.pasted.entry(name).or_default().push(maker);
            }
            _ => graph.vague.push((pattern, maker)),
        }
    }
}

/// Where headers are looked for.
struct Search {
    folders: Vec<PathBuf>,
    more: Vec<PathBuf>,
    known: HashMap<PathBuf, Vec<PathBuf>>,
}

impl Search {
    /// Whether every unit finds the first of these places first.
    fn is_known(&self, places: &[PathBuf]) -> bool {
        let common = |place: &PathBuf| self.folders.iter().any(|folder| place.starts_with(folder));
        places.len() == 1 || places.first().is_some_and(common)
    }

    /// All files that an `#include` in a file of `folder` may mean.
    fn places(&mut self, include: &Include, folder: &Path) -> Vec<PathBuf> {
        match include {
            Include::Computed => Vec::new(),
            Include::Angled(name) => self.named(name),
            Include::Quoted(name) => {
                let beside = clean(&folder.join(name));
                if beside.is_file() { vec![beside] } else { self.named(name) }
            }
        }
    }

    /// The folders that every unit looks into, or any of the others. `#include_next` passes over the first one.
    fn named(&mut self, name: &Path) -> Vec<PathBuf> {
        if let Some(known) = self.known.get(name) {
            return known.clone();
        }
        let there = |folder: &PathBuf| Some(clean(&folder.join(name))).filter(|path| path.is_file());
        let mut found: Vec<PathBuf> = self.folders.iter().filter_map(there).collect();
        if found.is_empty() {
            found = self.more.iter().filter_map(there).collect();
        }
        self.known.insert(name.to_owned(), found.clone());
        found
    }
}

/// Directives of a text, as whole logical lines; those in comments too.
fn directives(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < text.len() {
            let start = at + text[at..].iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
            if text.get(start) == Some(&b'#') {
                let end = directive_end(text, start);
                at = end + 1;
                return Some(&text[start..end]);
            }
            at = text[at..].iter().position(|&byte| byte == b'\n').map_or(text.len(), |len| at + len + 1);
        }
        None
    })
}

impl Scan {
    fn of(text: &[u8]) -> Self {
        let shape = Shape::of(text);
        let ordered = shape.includes.iter();
        let ordered = ordered.filter_map(|one| Some((include(one.what.trim_ascii())?, one.certain, one.next)));
        let mut scan = Self { ordered: ordered.collect(), guarded: shape.guarded, ..Self::default() };
        for line in directives(text) {
            let (name, rest) = directive(line);
            match name {
                b"include" | b"include_next" => scan.includes.extend(include(rest.trim_ascii())),
                b"define" => {
                    let Some(name) = words(rest).next() else { continue };
                    let start = name.as_ptr() as usize - rest.as_ptr() as usize + name.len();
                    if rest.get(start) == Some(&b'(') && may_declare(&rest[start..]) {
                        scan.macros.push(String::from_utf8_lossy(name).into_owned());
                    }
                }
                _ => {}
            }
        }
        scan
    }
}

/// Whether a macro, from its parameters on, may be part of a declaration. One that is nothing, a statement or a number
/// (the stub of a function that is not configured) cannot: where `int f(int);` compiles it is not defined.
fn may_declare(definition: &[u8]) -> bool {
    let tokens = tokens(definition);
    let end = tokens.iter().position(|token| token.is(b')')).map_or(tokens.len(), |end| end + 1);
    let is_number = |token: &Token<'_>| token.kind == TokenKind::Number;
    match &tokens[end..] {
        [] => false,
        [first, ..] if first.text == b"do" || is_number(first) => false,
        [open, next, ..] if open.is(b'(') => !(next.is(b'{') || next.is(b'-') || is_number(next)),
        _ => true,
    }
}

/// All files that an `#include` behind that word, in a file of `folder`, may mean, the likeliest first.
pub fn resolve(graph: &Graph, rest: &[u8], folder: &Path) -> Vec<PathBuf> {
    let mut search = Search { folders: graph.folders.clone(), more: graph.more_folders.clone(), known: HashMap::new() };
    include(rest.trim_ascii()).map(|include| search.places(&include, folder)).unwrap_or_default()
}

fn include(rest: &[u8]) -> Option<Include> {
    let until = |close: u8| rest[1..].iter().position(|&byte| byte == close).map(|len| &rest[1..1 + len]);
    let path = |bytes: &[u8]| PathBuf::from(String::from_utf8_lossy(bytes).into_owned());
    match rest.first() {
        Some(b'"') => until(b'"').map(|name| Include::Quoted(path(name))),
        Some(b'<') => until(b'>').map(|name| Include::Angled(path(name))),
        Some(&byte) if in_word(byte) => Some(Include::Computed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_whole() {
        let text = b"int a;\n # define A \\\n b\n#include <x.h>\n/*\n#include \"y.h\"\n*/\n#define B /* c\n */ d\n#\n";
        let found: Vec<_> = directives(text).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        assert_eq!(found, ["# define A \\\n b", "#include <x.h>", "#include \"y.h\"", "#define B /* c\n */ d", "#"]);
        let scan = Scan::of(text);
        assert_eq!(scan.includes, [Include::Angled("x.h".into()), Include::Quoted("y.h".into())]);
        assert_eq!(scan.ordered, [(Include::Angled("x.h".into()), true, false)]);
        assert_eq!(Scan::of(b"#define F(x) x\n#define G (x)\n").macros, ["F"]);
        let stubs = b"#define A(x)\n#define B(x) do { } while (0)\n#define C(x) ({ -1; })\n#define D(x) (-1)\n#define E(x, ...) 0\n";
        assert!(Scan::of(stubs).macros.is_empty());
    }
}
