//! Which units a changed header can change.
//!
//! Comes in: the changed headers, all units of the kernel's build and of the image. Decided: which of them must be
//! compiled to see whether they change, by two exact filters: 1. by text ([`text`]): a unit that mentions nothing of what
//! changes, directly or through other declarations, cannot change; 2. by the preprocessor ([`preprocess`]): a unit whose
//! declarations are the same, or differ in those alone that nothing refers to, cannot change either. Goes out:
//! [`Affected`]: units to compile, loadable modules that change as well, and what else takes the headers in.

pub mod brought;
pub mod graph;
pub mod paste;
pub mod preprocess;
pub mod scan;
pub mod shape;
pub mod text;

use crate::kbuild::compile::{Compile, Unit};
use crate::kbuild::listing::Listing;
use crate::kbuild::{BuildFolder, KbuildError};
use crate::progress::Progress;
use crate::report::{ModuleUnit, Reason};
use crate::request::Request;
use crate::scope::elsewhere;
use diff_analyzer::source_diff::{ChangeKind, FileChange};
use graph::{FileId, Graph, Roots};
use prelink::units::UnitIndex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use text::{Header, Reach, reach, same_items};

/// More units of modules that stay as they are than this are not preprocessed; those that the text tells of are listed.
const MODULE_UNITS: usize = 64;

/// Sources of which the build makes headers or the linker's script; they are no units (Kbuild, arch/x86/kernel/Makefile).
const MAKERS: &[(&str, &str)] = &[
    ("arch/x86/kernel/asm-offsets.c", "the build makes a header for assembly of it"),
    ("kernel/bounds.c", "the build makes a header of it that every unit takes in"),
    ("arch/x86/kernel/vmlinux.lds.S", "it is the linker's script"),
];

/// What changed headers reach, by text.
#[derive(Debug, Default)]
pub struct ByText {
    /// Units of the image that may change.
    pub units: BTreeSet<PathBuf>,
    /// Units of modules that may change.
    pub modules: BTreeMap<PathBuf, String>,
    /// What is no unit of either: assembly, code elsewhere, makers of headers; with the rule and the reason to refuse it.
    pub others: BTreeMap<PathBuf, (&'static str, &'static str)>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// What changed headers reach.
#[derive(Debug, Default)]
pub struct Affected {
    /// Units of the image to compile.
    pub units: BTreeSet<PathBuf>,
    /// Units of modules that change or may change.
    pub modules: Vec<ModuleUnit>,
    /// What cannot be done.
    pub reasons: Vec<Reason>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// What the first filter looks at.
pub struct Sources<'a, 'i> {
    /// The request.
    pub request: &'a Request,
    /// The prepared build folder.
    pub folder: &'a BuildFolder,
    /// All units of the kernel's build.
    pub listing: &'a Listing,
    /// Units of the image.
    pub index: &'a UnitIndex<'i>,
    /// What the diff changes.
    pub changes: &'a [FileChange],
}

impl Sources<'_, '_> {
    /// The first filter.
    ///
    /// # Errors
    /// [`KbuildError`] when what the build generates cannot be made.
    pub fn by_text(&self, headers: &BTreeSet<PathBuf>, progress: &Progress) -> Result<ByText, KbuildError> {
        // Comments and blanks need no look at anything else.
        let (headers, notes) = self.without_comments(headers);
        if headers.is_empty() {
            return Ok(ByText { notes, ..ByText::default() });
        }
        progress.phase("reading which files take in which");
        let makers = MAKERS.iter().map(|(file, _)| PathBuf::from(file));
        let of_image = self.index.iter().map(|unit| PathBuf::from(&unit.name));
        let all: BTreeSet<PathBuf> = self.listing.units.keys().cloned().chain(of_image).chain(makers).collect();
        let roots =
            Roots { source: &self.request.source, build: &self.folder.path, listing: self.listing, units: &all };
        let mut graph = Graph::open(&roots, &self.folder.graph_file(), false);
        let files: Vec<FileId> = headers.iter().filter_map(|header| graph.find(header)).collect();
        if self.generate(&graph, files, &all, progress)? {
            graph = Graph::open(&roots, &self.folder.graph_file(), true);
        }
        let (mut changed, mut notes) = (Vec::new(), notes);
        for change in self.changes {
            let (old, new): (&Path, &[u8]) = match &change.kind {
                ChangeKind::Modified => (&change.path, &change.new),
                ChangeKind::Deleted => (&change.path, b""),
                // Who takes it in must change as well.
                ChangeKind::Renamed { from } => (from, b""),
                ChangeKind::New => continue,
            };
            if !headers.contains(old) {
                continue;
            }
            match graph.find(old) {
                Some(file) => changed.push(Header { file, old: &change.old, new }),
                None => notes.push(format!("{}: no effect on this kernel (nothing of it takes it in)", old.display())),
            }
        }
        progress.phase("looking for what mentions the changed declarations");
        let apart = self.changes.iter().filter(|change| is_source(&change.path));
        let apart: BTreeSet<FileId> = apart.filter_map(|change| graph.find(&change.path)).collect();
        let reach = reach(&graph, &changed, apart);
        let mut found = ByText { notes, ..ByText::default() };
        found.sort(&graph, &reach, self.listing, self.index, &all);
        Ok(found)
    }

    /// The headers of which more than comments and blanks changes, and a note for each of the others.
    fn without_comments(&self, headers: &BTreeSet<PathBuf>) -> (BTreeSet<PathBuf>, Vec<String>) {
        let (mut changed, mut notes) = (headers.clone(), Vec::new());
        for change in self.changes.iter().filter(|change| change.kind == ChangeKind::Modified) {
            if changed.contains(&change.path) && same_items(&change.old, &change.new) {
                changed.remove(&change.path);
                notes.push(format!("{}: no effect (comments and blanks only)", change.path.display()));
            }
        }
        (changed, notes)
    }

    /// Has the build make the sources and headers that it generates and that take in a header, or are taken in with it.
    /// Whether there were some.
    fn generate(
        &self,
        graph: &Graph,
        headers: Vec<FileId>,
        all: &BTreeSet<PathBuf>,
        progress: &Progress,
    ) -> Result<bool, KbuildError> {
        if headers.is_empty() {
            return Ok(false);
        }
        let mut known = self.folder.generated();
        let see = graph.users(headers);
        let (mut wanted, mut news) = (BTreeSet::new(), BTreeSet::new());
        for unit in all.iter().filter(|unit| self.listing.units.contains_key(*unit) && !known.contains(*unit)) {
            // A generated source may take in anything.
            if graph.find(unit).is_none() {
                wanted.insert(unit.clone());
                news.insert(unit.clone());
            }
        }
        let by_id: BTreeMap<FileId, &PathBuf> = all.iter().filter_map(|unit| Some((graph.find(unit)?, unit))).collect();
        for (id, file) in
            graph.files().iter().enumerate().filter(|(_, file)| file.incomplete && !known.contains(&file.path))
        {
            let users = graph.users([id]);
            // One unit of those that take it in is enough: they all need the same parts.
            let listed = |id: &FileId| by_id.get(id).filter(|unit| self.listing.units.contains_key(**unit));
            if let Some(unit) = users.intersection(&see).find_map(listed) {
                wanted.insert((*unit).clone());
                news.insert(file.path.clone());
            }
        }
        if wanted.is_empty() {
            return Ok(false);
        }
        progress.phase(format!("generating what {} units need (once per kernel)", wanted.len()));
        let units: Vec<PathBuf> = wanted.into_iter().collect();
        self.folder.generate(self.request, &units)?;
        known.append(&mut news);
        self.folder.note_generated(&known)?;
        Ok(true)
    }
}

fn is_source(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "c")
}

impl ByText {
    fn sort(
        &mut self,
        graph: &Graph,
        reach: &Reach,
        listing: &Listing,
        index: &UnitIndex<'_>,
        all: &BTreeSet<PathBuf>,
    ) {
        let files = reach.files(graph);
        let see = graph.users(reach.changed.iter().copied());
        let (mut seeing, mut of_image) = (0usize, 0usize);
        for unit in all {
            let id = graph.find(unit);
            // What only the link makes (`.vmlinux.export.c`, scripts/link-vmlinux.sh) takes in nothing of the diff.
            let listed = listing.units.contains_key(unit);
            let sees = id.is_some_and(|id| see.contains(&id));
            let in_image = !index.named(&unit.display().to_string()).is_empty();
            seeing += usize::from(sees && in_image);
            if !id.is_some_and(|id| files.contains(&id)) {
                continue;
            }
            if let Some((_, why)) = MAKERS.iter().find(|(file, _)| Path::new(file) == unit) {
                self.others.insert(unit.clone(), ("generated-code", why));
                continue;
            }
            if let Some(why) = elsewhere(unit) {
                self.others.insert(unit.clone(), why);
                continue;
            }
            if in_image && !listed {
                self.others.insert(unit.clone(), ("unknown-build-step", "how it is compiled is not known"));
            } else if in_image {
                of_image += 1;
                if is_source(unit) {
                    self.units.insert(unit.clone());
                } else {
                    self.others.insert(unit.clone(), ("assembly", "it is assembly, which takes in what changes"));
                }
            }
            for listed in listing.units.get(unit).into_iter().flatten() {
                if let Some(module) = &listed.module {
                    self.modules.insert(unit.clone(), module.clone());
                }
            }
        }
        for &file in &reach.changed {
            let name = graph.name(file).display();
            self.notes.push(format!(
                "{name}: of {seeing} units of the image that take in a changed header, {of_image} mention what changes"
            ));
        }
        self.notes.extend(reach.whole.iter().map(|why| format!("the header counts as a whole: {why}")));
    }

    /// How many units may change.
    pub fn len(&self) -> usize {
        self.units.len() + self.modules.len()
    }

    /// Whether no unit may change.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everything that the second filter preprocesses. Units of `direct` are compiled in any case.
    ///
    /// # Errors
    /// [`KbuildError`] when the commands of a unit are not known.
    pub fn to_preprocess(
        &self,
        request: &Request,
        folder: &BuildFolder,
        direct: &BTreeSet<PathBuf>,
        built_in_only: bool,
    ) -> Result<Vec<Unit>, KbuildError> {
        // Modules that stay as they are need not be known for certain, when there are many.
        let modules = self.modules.keys().filter(|_| !built_in_only || self.modules.len() <= MODULE_UNITS);
        let others = self.others.iter().filter(|(other, (rule, _))| !is_maker(other) && *rule != "unknown-build-step");
        let others = others.map(|(other, _)| other);
        let wanted: BTreeSet<PathBuf> = self.units.iter().chain(modules).chain(others).cloned().collect();
        let wanted: Vec<PathBuf> = wanted.difference(direct).cloned().collect();
        let mut units: Vec<Unit> = (folder.commands(request, &wanted)?.into_iter())
            .map(|(name, commands)| Unit { source: name.clone(), name, new: false, commands })
            .collect();
        // The makers are compiled like any other unit, as far as the preprocessor goes.
        for other in self.others.keys().filter(|other| is_maker(other)) {
            let like = PathBuf::from(if is_source(other) { "init/main.c" } else { "arch/x86/kernel/head_64.S" });
            for (like, commands) in folder.commands(request, std::slice::from_ref(&like))? {
                let (from, to) = (like.display().to_string(), other.display().to_string());
                let mut commands = commands.map(|word| {
                    word.strip_suffix(&from).map_or_else(|| word.to_owned(), |start| format!("{start}{to}"))
                });
                commands.compile.extend((!is_source(other)).then(|| "-DLINKER_SCRIPT".to_owned()));
                units.push(Unit { name: other.clone(), source: other.clone(), new: false, commands });
            }
        }
        Ok(units)
    }

    /// The second filter, after the trees were made. Units of `direct` are compiled in any case.
    pub fn by_preprocessor(
        self,
        compile: &Compile<'_>,
        units: &[Unit],
        direct: &BTreeSet<PathBuf>,
        progress: &Progress,
    ) -> Result<Affected, crate::kbuild::compile::CompileError> {
        let mut affected = Affected { notes: self.notes, ..Affected::default() };
        let same = preprocess::unchanged(compile, units, progress)?;
        let changes = |unit: &PathBuf| !same.contains(unit);
        affected.units.extend(self.units.iter().filter(|unit| changes(unit) || direct.contains(*unit)).cloned());
        let dropped = self.units.len() - affected.units.len();
        if dropped > 0 {
            affected.notes.push(format!(
                "{dropped} of these units are the same after the preprocessor, but for what they do not use"
            ));
        }
        let modules = self.modules.into_iter().filter(|(unit, _)| changes(unit));
        affected.modules.extend(modules.map(|(unit, module)| ModuleUnit { module, unit: unit.display().to_string() }));
        for (unit, (rule, why)) in self.others.into_iter().filter(|(unit, _)| changes(unit)) {
            let message = format!("{} takes in a changed header and changes with it: {why}", unit.display());
            let reason = Reason::new(rule, message).at(unit.display().to_string(), None);
            affected.reasons.push(reason.help("leave that part out of the header, or reboot into the new kernel"));
        }
        Ok(affected)
    }
}

fn is_maker(unit: &Path) -> bool {
    MAKERS.iter().any(|(file, _)| Path::new(file) == unit)
}
