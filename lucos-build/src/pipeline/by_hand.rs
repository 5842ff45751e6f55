//! The way of an update that is written by hand, in C or as an object.
//!
//! Comes in: what was typed. Decided: the same as for a diff, except that nothing is compared: what the update replaces, it says.
//! Goes out: the bundle; or why there is none.

use super::work::Work;
use super::write::write;
use super::{Opened, Stop, prepare};
use crate::args::BuildArgs;
use crate::by_hand::{HandObject, Replacement};
use crate::inputs::Found;
use crate::kbuild::by_hand::ByHandError;
use crate::kbuild::command::CommandError;
use crate::kbuild::{self, BuildFolder, KbuildError};
use crate::modules::Modules;
use crate::overrides::Overrides;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::report::{Reason, Report, millis};
use crate::request::{self, Request, RequestError};
use prelink::units::UnitIndex;
use std::path::Path;
use std::time::Instant;

/// Where the object of an update written by hand comes from.
pub(super) enum Source<'a> {
    /// A C file to compile.
    C(&'a Path),
    /// An object, and what was typed that it replaces.
    Object(&'a Path, &'a [Replacement]),
}

/// The phases of an update written by hand: 1, 4, 9 and 10. There is nothing to compare; what it replaces, it says.
pub(super) fn by_hand(
    args: &BuildArgs,
    from: &Source<'_>,
    progress: &Progress,
    report: &mut Report,
) -> Result<(), Stop> {
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
    let folder = prepare(&request, report, progress)?;
    let work = Work::new(request.keep_dir.as_deref()).map_err(Stop::failed)?;
    report.timings_ms.setup = millis(clock.elapsed());

    // 4. Compile: kbuild/by_hand.rs
    let clock = Instant::now();
    let (object, replace): (_, &[Replacement]) = match *from {
        Source::C(path) => (compile(args, path, (&folder, &units), &request, work.path(), progress)?, &[]),
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
pub(super) fn compile(
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
