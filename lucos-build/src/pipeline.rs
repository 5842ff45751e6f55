//! The whole way from a diff to a bundle, phase by phase.
//!
//! Comes in: what was typed. Decided: what each phase decides; the first phase that cannot go on ends the build. Goes
//! out: a [`Report`], and the bundle if there is one; or the failure of the tool or its environment.

use crate::args::{BuildArgs, PrelinkArgs};
use crate::by_hand::{HandObject, Replacement};
use crate::details::{Details, FileRow};
use crate::faults::Faults;
use crate::identity::Config;
use crate::inputs::{Found, OF_BUILD};
use crate::kbuild::by_hand::ByHandError;
use crate::kbuild::command::CommandError;
use crate::kbuild::given::Given;
use crate::kbuild::{self, BuildFolder, KbuildError};
use crate::modules::Modules;
use crate::outputs::Outputs;
use crate::overrides::{Overrides, OverridesError};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::report::{Reason, Report, Verdict, millis};
use crate::request::{self, Request, RequestError};
use crate::scope::Scope;
use diff_analyzer::source_diff::{self, DiffError, FileChange};
use lpk_format::Bundle;
use prelink::dwarf::DebugSections;
use prelink::units::UnitIndex;
use prelink::vmlinux::KernelImage;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Why a build ends without a bundle.
#[derive(Debug)]
pub enum Stop {
    /// It must not be done: why.
    Refused(Vec<Reason>),
    /// The tool or its environment failed.
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

impl Stop {
    /// Refused for one reason.
    pub fn refused(reason: Reason) -> Self {
        Self::Refused(vec![reason])
    }

    /// The tool or its environment failed.
    pub fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Failed(Box::new(error))
    }
}

/// A folder for the work cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// It has something in it.
    #[error("{} is not empty; --keep-dir needs an empty or new folder", .0.display())]
    NotEmpty(PathBuf),
    /// It cannot be made.
    #[error("cannot make the work folder {}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A bundle that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The plan is not a sound bundle: a fault of this program.
    #[error("internal error: the bundle is not sound")]
    Write(#[source] lpk_format::WriteError),
    /// The file does not read back: a fault of this program.
    #[error("internal error: the bundle does not read back")]
    ReadBack(#[source] lpk_format::ReadError),
    /// The file reads back as something else: a fault of this program.
    #[error("internal error: the bundle reads back as something else than was meant")]
    Different,
    /// The file system.
    #[error("cannot write {}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Builds a bundle.
///
/// # Errors
/// The failure of the tool or its environment; a refusal is a report.
pub fn run(args: &BuildArgs, progress: &Progress) -> Result<Report, Box<dyn std::error::Error + Send + Sync>> {
    let started = Instant::now();
    let outputs = Outputs::open(args)?;
    let mut report = Report { details: args.report.is_some().then(Details::default), ..Report::new() };
    let done = match &args.update {
        Some(file) => hand(args, &Source::C(file), progress, &mut report),
        None => drive(args, progress, &mut report),
    };
    outputs.write(finish(args, done, report, started)?)
}

/// Makes a bundle from an object that the author compiled.
///
/// # Errors
/// The failure of the tool or its environment; a refusal is a report.
pub fn prelink(args: &PrelinkArgs, progress: &Progress) -> Result<Report, Box<dyn std::error::Error + Send + Sync>> {
    let started = Instant::now();
    let build = args.build();
    let outputs = Outputs::open(&build)?;
    let mut report = Report { details: args.report.is_some().then(Details::default), ..Report::new() };
    let done = hand(&build, &Source::Object(&args.object, &args.replace), progress, &mut report);
    outputs.write(finish(&build, done, report, started)?)
}

/// Puts the end of a build into the report.
fn finish(
    args: &BuildArgs,
    done: Result<(), Stop>,
    mut report: Report,
    started: Instant,
) -> Result<Report, Box<dyn std::error::Error + Send + Sync>> {
    match done {
        Ok(()) => {}
        Err(Stop::Refused(reasons)) => {
            if report.verdict != Verdict::Type2 {
                report.verdict = Verdict::Refused;
            }
            report.reasons = reasons;
            report.functions.clear();
            report.data.clear();
            report.hooks.clear();
        }
        Err(Stop::Failed(error)) => return Err(error),
    }
    let mut known = BTreeSet::new();
    report.notes.retain(|note| known.insert(note.clone()));
    report.timings_ms.total = millis(started.elapsed());
    if let Some(folder) = &args.keep_dir {
        keep_report(&report, folder)?;
    }
    Ok(report)
}

/// Puts the report beside what it is about.
fn keep_report(report: &Report, folder: &Path) -> Result<(), WorkError> {
    for (name, text) in [("report.json", report.to_json()), ("report.txt", report.to_text())] {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|source| WorkError::Io { path, source })?;
    }
    Ok(())
}

/// Where the object of an update written by hand comes from.
enum Source<'a> {
    /// A C file to compile.
    C(&'a Path),
    /// An object, and what was typed that it replaces.
    Object(&'a Path, &'a [Replacement]),
}

/// The phases of an update written by hand: 1, 4, 9 and 10. There is nothing to compare; what it replaces, it says.
fn hand(args: &BuildArgs, from: &Source<'_>, progress: &Progress, report: &mut Report) -> Result<(), Stop> {
    let (Source::C(path) | Source::Object(path, _)) = *from;
    // 1. Identify the kernel
    let clock = Instant::now();
    progress.phase("reading the kernel image");
    report.diff = request::read_diff(path).map_err(Stop::failed)?;
    report.inputs.update = Some(Found { path: path.to_owned(), how: "given".to_owned() });
    let kernel = Opened::of(args, report)?;
    let sections = kernel.debug_sections()?;
    let units = UnitIndex::build(&sections).map_err(|error| Stop::failed(RequestError::Dwarf(error)))?;
    let request = request::identify(args, kernel.build.clone(), &kernel.image, &units, report, progress)?;
    report.timings_ms.identify = millis(clock.elapsed());
    let clock = Instant::now();
    let folder = BuildFolder::prepare(&request, progress).map_err(Stop::failed)?;
    report.inputs.build_folder = Some(folder.path.clone());
    report.notes.extend(folder.drift.iter().cloned());
    let work = Work::new(request.keep_dir.as_deref()).map_err(Stop::failed)?;
    report.timings_ms.setup = millis(clock.elapsed());

    // 4. Compile: kbuild/by_hand.rs
    let clock = Instant::now();
    let (object, replace): (_, &[Replacement]) = match *from {
        Source::C(path) => (compile_hand(args, path, (&folder, &units), &request, work.path(), progress)?, &[]),
        Source::Object(path, replace) => (HandObject::read(path, &file_name(path))?, replace),
    };
    report.timings_ms.compile = millis(clock.elapsed());

    // 9. Pre-link: by_hand.rs, prelink/src/{declare,by_hand,link}.rs
    let clock = Instant::now();
    progress.phase("resolving symbols");
    let (modules, changes, overrides) = (Modules::default(), Vec::new(), Overrides::default());
    let plan = Plan {
        args,
        overrides: &overrides,
        request: &request,
        folder: &folder,
        image: &kernel.image,
        units: &units,
        changes: &changes,
        work: work.path(),
    };
    let judge = plan.judge(&modules, None);
    let profile = judge.profile()?;
    let pieces = object.cut(&profile.sizes)?;
    let linked = judge.link_by_hand(&pieces, replace, &profile.sizes, report)?;
    report.timings_ms.link = millis(clock.elapsed());
    let bundle = judge.complete(vec![(None, linked)], profile, report, progress)?;
    write(args, &bundle, report, progress)
}

/// Compiles what the author wrote in C.
fn compile_hand(
    args: &BuildArgs,
    path: &Path,
    (folder, units): (&BuildFolder, &UnitIndex<'_>),
    request: &Request,
    work: &Path,
    progress: &Progress,
) -> Result<HandObject, Stop> {
    let name = file_name(path);
    progress.phase(format!("compiling {name}"));
    let like = args.like.as_deref().unwrap_or(Path::new(kbuild::by_hand::LIKE));
    if args.like.is_some() && units.named(&like.display().to_string()).is_empty() {
        let message = format!("{} is not compiled into this kernel", like.display());
        let help = "--like names a .c file of the kernel image, relative to its source";
        return Err(Stop::refused(Reason::new("not-built-in", message).help(help)));
    }
    match kbuild::by_hand::compile(folder, request, path, like, work) {
        Ok(object) => HandObject::read(&object, &name),
        Err(error @ ByHandError::Compile(_)) => {
            let help = "it is kernel C, compiled with the kernel's headers and options; docs/hooks.md has examples";
            let said = error.to_string();
            // FILE:LINE:COLUMN: error: …
            let first = said.lines().filter_map(|line| line.split_once(" error: ")).find_map(|(place, _)| {
                let mut parts = place.trim_end_matches(':').rsplit(':');
                let (_, line) = (parts.next()?, parts.next()?);
                parts.next()?.ends_with(&name).then(|| line.parse::<usize>().ok())?
            });
            Err(Stop::refused(Reason::new("compile-error", said).at(name, first).help(help)))
        }
        Err(error @ ByHandError::Module(_)) => Err(Stop::refused(Reason::new("not-built-in", error.to_string()))),
        Err(ByHandError::Kbuild(KbuildError::Command(error @ CommandError::NotCompiled { .. }))) => {
            let help = "--like names a .c file that this kernel has compiled in, relative to its source";
            Err(Stop::refused(Reason::new("not-built-in", error.to_string()).help(help)))
        }
        Err(error) => Err(Stop::failed(error)),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The kernel image of a build.
struct Opened {
    path: PathBuf,
    image: KernelImage,
    build: Option<Given>,
}

impl Opened {
    fn of(args: &BuildArgs, report: &mut Report) -> Result<Self, Stop> {
        let build = args.build.as_deref().map(Given::open).transpose().map_err(Stop::failed)?;
        let path = args.vmlinux();
        let how = if args.vmlinux.is_some() { "given" } else { OF_BUILD };
        report.inputs.vmlinux = Some(Found { path: path.clone(), how: how.to_owned() });
        Ok(Self { image: request::open_image(&path)?, path, build })
    }

    fn debug_sections(&self) -> Result<DebugSections<'_>, Stop> {
        DebugSections::load(|name| self.image.section_data(name)).map_err(|error| {
            let path = self.path.display().to_string();
            Stop::refused(Reason::new("no-debug-information", error.to_string()).at(path, None))
        })
    }
}

/// All phases in order.
fn drive(args: &BuildArgs, progress: &Progress, report: &mut Report) -> Result<(), Stop> {
    // 1. Identify the kernel: request.rs, identity.rs
    let clock = Instant::now();
    progress.phase("reading the kernel image");
    let diff = args.diff();
    report.diff = request::read_diff(diff).map_err(Stop::failed)?;
    report.inputs.diff = Some(Found { path: diff.to_owned(), how: "given".to_owned() });
    let kernel = Opened::of(args, report)?;
    let image = &kernel.image;
    let sections = kernel.debug_sections()?;
    let units = UnitIndex::build(&sections).map_err(|error| Stop::failed(RequestError::Dwarf(error)))?;
    let request = request::identify(args, kernel.build.clone(), image, &units, report, progress)?;
    report.timings_ms.identify = millis(clock.elapsed());

    // 2. Read the diff: diff-analyzer/src/source_diff.rs
    let clock = Instant::now();
    progress.phase("reading the diff");
    let changes = source_diff::read(&report.diff, &request.source).map_err(of_diff)?;
    report.notes.extend(moved_hunks(&changes));
    if let Some(details) = &mut report.details {
        details.files = changes.iter().map(FileRow::of).collect();
    }

    // 3. Find the units: scope.rs, headers.rs
    let mut scope = Scope::of(&changes, &units, &request.source, &Config::parse(&request.config))
        .map_err(|error| Stop::failed(RequestError::Dwarf(error)))?;
    report.notes.append(&mut scope.notes);
    report.timings_ms.read_diff = millis(clock.elapsed());
    let mut faults = Faults::new(args);
    faults.take(std::mem::take(&mut scope.reasons), report)?;
    if scope.is_empty() {
        return faults.end(false, report);
    }
    let clock = Instant::now();
    let folder = BuildFolder::prepare(&request, progress).map_err(Stop::failed)?;
    report.inputs.build_folder = Some(folder.path.clone());
    report.notes.extend(folder.drift.iter().cloned());
    let work = Work::new(request.keep_dir.as_deref()).map_err(Stop::failed)?;
    let overrides = Overrides::find(args.overrides.as_deref(), diff).map_err(of_overrides)?;
    report.inputs.overrides = overrides.path().map(|path| Found {
        path: path.to_owned(),
        how: if args.overrides.is_some() { "given" } else { "beside the diff" }.to_owned(),
    });
    report.vouched = overrides.vouched();
    let plan = Plan {
        args,
        overrides: &overrides,
        request: &request,
        folder: &folder,
        image,
        units: &units,
        changes: &changes,
        work: work.path(),
    };
    let mut list = plan.units(&scope, &mut faults, report, progress)?;
    let modules = plan.modules(&mut list, &mut faults, report, progress)?;
    report.timings_ms.setup = millis(clock.elapsed());

    // 4. Compile each unit twice: plan.rs, kbuild.rs, kbuild/
    let hooks = match &args.hooks {
        Some(path) => {
            report.inputs.hooks = Some(Found { path: path.clone(), how: "given".to_owned() });
            let work = work.path().join("hooks");
            std::fs::create_dir_all(&work)
                .map_err(|source| Stop::failed(WorkError::Io { path: work.clone(), source }))?;
            Some(compile_hand(args, path, (&folder, &units), &request, &work, progress)?)
        }
        None => None,
    };
    let judge = plan.judge(&modules, hooks.as_ref());
    let compiled = plan.compile(&list, &scope.files, &mut faults, report, progress)?;

    // 5. Prove, 6. compare, 7. and 8. classify, 9. pre-link: judge.rs
    let bundle = faults.judge(&plan, &judge, compiled, report, progress)?;
    let unused = overrides.unused();
    if !unused.is_empty() {
        return Err(Stop::Refused(unused));
    }
    faults.end(bundle.is_some(), report)?;
    let Some(bundle) = bundle else { return Ok(()) };
    write(args, &bundle, report, progress)
}

/// 10. Writes a bundle, and reads it back.
fn write(args: &BuildArgs, bundle: &Bundle, report: &mut Report, progress: &Progress) -> Result<(), Stop> {
    let clock = Instant::now();
    progress.phase("writing the bundle");
    let path = args.bundle_path();
    write_bundle(bundle, &path).map_err(Stop::failed)?;
    report.bundle = Some(path);
    report.timings_ms.write = millis(clock.elapsed());
    Ok(())
}

/// Writes a bundle beside its place, reads it back, and moves it there only when it is what was meant.
fn write_bundle(bundle: &Bundle, path: &Path) -> Result<(), BundleError> {
    let io = |source| BundleError::Io { path: path.to_owned(), source };
    let bytes = lpk_format::write(bundle).map_err(BundleError::Write)?;
    let read = lpk_format::read(&bytes).map_err(BundleError::ReadBack)?;
    if read.bundle != *bundle {
        return Err(BundleError::Different);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".lucos-build-").tempfile_in(folder).map_err(io)?;
    std::io::Write::write_all(&mut file, &bytes).map_err(io)?;
    // Temporary files are private; a bundle is as readable as any other output.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(open).map_err(io)?;
    file.persist(path).map_err(|error| io(error.error))?;
    Ok(())
}

/// Where overlays and objects go.
enum Work {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Work {
    fn new(kept: Option<&Path>) -> Result<Self, WorkError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| WorkError::Io { path, source }
        };
        let Some(path) = kept else {
            let folder = tempfile::Builder::new().prefix("lucos-build-").tempdir();
            return folder.map(Self::Temporary).map_err(at(&std::env::temp_dir()));
        };
        std::fs::create_dir_all(path).map_err(at(path))?;
        if std::fs::read_dir(path).map_err(at(path))?.next().is_some() {
            return Err(WorkError::NotEmpty(path.to_owned()));
        }
        path.canonicalize().map(Self::Kept).map_err(at(path))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(folder) => folder.path(),
        }
    }
}

fn of_overrides(error: OverridesError) -> Stop {
    match &error {
        OverridesError::Read { .. } => Stop::failed(error),
        OverridesError::Form { path, line, message } => {
            let reason = Reason::new("override-form", message.clone()).at(path.display().to_string(), Some(*line));
            Stop::refused(reason.help("docs/classification.md describes the file"))
        }
    }
}

fn of_diff(error: DiffError) -> Stop {
    if matches!(error, DiffError::Io { .. }) {
        return Stop::failed(error);
    }
    let (file, line) = error.place();
    let mut reason = Reason::new(error.rule(), error.to_string()).in_diff(error.diff_line());
    (reason.file, reason.line) = (file, line);
    Stop::refused(reason)
}

fn moved_hunks(changes: &[FileChange]) -> Vec<String> {
    let mut notes = Vec::new();
    for change in changes {
        for (index, hunk) in change.hunks.iter().enumerate().filter(|(_, hunk)| hunk.moved != 0) {
            let path = change.path.display();
            notes.push(format!("{path}: hunk {} applies {:+} lines from where the diff says", index + 1, hunk.moved));
        }
    }
    notes
}
