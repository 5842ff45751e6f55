//! The whole way from a diff to a bundle, phase by phase.
//!
//! Comes in: what was typed. Decided: what each phase decides; the first phase that cannot go on ends the build. Goes
//! out: a [`Report`], and the bundle if there is one; or the failure of the tool or its environment.

mod by_hand;
mod work;
mod write;

pub use work::WorkError;
pub use write::BundleError;

use crate::args::{BuildArgs, PrelinkArgs};
use crate::details::{Details, FileRow};
use crate::faults::Faults;
use crate::identity::Config;
use crate::inputs::{Found, OF_BUILD};
use crate::kbuild::BuildFolder;
use crate::kbuild::given::Given;
use crate::outputs::Outputs;
use crate::overrides::{Overrides, OverridesError};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::report::{Reason, Report, Verdict, millis};
use crate::request::{self, Request, RequestError};
use crate::scope::Scope;
use by_hand::{Source, by_hand, compile};
use diff_analyzer::source_diff::{self, DiffError, FileChange};
use prelink::dwarf::DebugSections;
use prelink::units::UnitIndex;
use prelink::vmlinux::KernelImage;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;
use work::Work;
use write::write;

/// The tool or its environment failed.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Why a build ends without a bundle.
#[derive(Debug)]
pub enum Stop {
    /// It must not be done: why.
    Refused(Vec<Reason>),
    /// The tool or its environment failed.
    Failed(Failure),
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

/// Builds a bundle.
///
/// # Errors
/// The failure of the tool or its environment; a refusal is a report.
pub fn run(args: &BuildArgs, progress: &Progress) -> Result<Report, Failure> {
    reported(args, |report| match &args.update {
        Some(file) => by_hand(args, &Source::C(file), progress, report),
        None => drive(args, progress, report),
    })
}

/// Makes a bundle from an object that the author compiled.
///
/// # Errors
/// The failure of the tool or its environment; a refusal is a report.
pub fn prelink(args: &PrelinkArgs, progress: &Progress) -> Result<Report, Failure> {
    let build = args.build();
    let source = Source::Object(&args.object, &args.replace);
    reported(&build, |report| by_hand(&build, &source, progress, report))
}

/// Builds something, and writes what is said of it in all forms that are wanted.
fn reported(args: &BuildArgs, build: impl FnOnce(&mut Report) -> Result<(), Stop>) -> Result<Report, Failure> {
    let started = Instant::now();
    let outputs = Outputs::open(args)?;
    let mut report = Report { details: args.report.is_some().then(Details::default), ..Report::new() };
    let done = build(&mut report);
    outputs.write(finish(args, done, report, started)?)
}

/// Puts the end of a build into the report.
fn finish(args: &BuildArgs, done: Result<(), Stop>, mut report: Report, started: Instant) -> Result<Report, Failure> {
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

/// The kernel's build folder, made ready for compiling.
fn prepare(request: &Request, report: &mut Report, progress: &Progress) -> Result<BuildFolder, Stop> {
    let folder = BuildFolder::prepare(request, progress).map_err(Stop::failed)?;
    report.inputs.build_folder = Some(folder.path.clone());
    report.notes.extend(folder.drift.iter().cloned());
    Ok(folder)
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
    let folder = prepare(&request, report, progress)?;
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
            Some(compile(args, path, (&folder, &units), &request, &work, progress)?)
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
