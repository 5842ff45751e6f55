//! `lucos-build layout`: what two kernel images lay out differently, without any patch.
//!
//! Comes in: one or two images. Decided: whether they can be read, and the verdict. Goes out: [`LayoutReport`]. For checks of
//! a kernel's binary interface in pipelines; the layouts themselves are compared by [`diff_analyzer::image_layout`].

mod report;
mod text;

pub use report::{LayoutReport, Verdict};

use crate::args::LayoutArgs;
use crate::pipeline::Stop;
use crate::report::Reason;
use diff_analyzer::image_layout::{self, Image, IndexError, Side, SourceError, Wanted};
use std::path::Path;

/// Compares two images, or reads the layouts of one.
///
/// # Errors
/// The failure of the tool or its environment; an image that cannot be used is a report with reasons.
pub fn run(args: &LayoutArgs) -> Result<LayoutReport, Box<dyn std::error::Error + Send + Sync>> {
    match read(args) {
        Ok(report) => Ok(report),
        Err(Stop::Refused(reasons)) => Ok(LayoutReport::refused(reasons)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

fn read(args: &LayoutArgs) -> Result<LayoutReport, Stop> {
    let wanted = Wanted::new(args.types.iter().map(|name| name.trim().to_owned()));
    let old = open(&args.old)?;
    let Some(path) = &args.new else {
        let types = image_layout::types(&old, &wanted).map_err(|error| unusable(&args.old, &error))?;
        unknown(&types.missing, "the image has")?;
        return Ok(LayoutReport::of_image(types));
    };
    let new = open(path)?;
    let difference = image_layout::compare(&old, &new, &wanted).map_err(|error| {
        let path = if error.side == Side::Old { &args.old } else { path };
        unusable(path, &error.source)
    })?;
    Image::close(old, new);
    unknown(&difference.missing, "neither image has")?;
    Ok(LayoutReport::of_images(difference))
}

fn open(path: &Path) -> Result<Image, Stop> {
    Image::open(path).map_err(|error| {
        let (rule, help) = match &error {
            SourceError::Io { .. } => return Stop::failed(error),
            SourceError::NotAnImage { .. } => {
                ("not-an-image", "give a vmlinux, a module or an object for x86-64, not packed (extract a vmlinuz first)")
            }
            SourceError::NoDebugInfo { .. } => (
                "no-debug-information",
                "build with CONFIG_DEBUG_INFO_DWARF5 or -g, or give the file of the debug package (Debian: linux-image-…-dbg)",
            ),
            SourceError::Sections { .. } => ("debug-information-unusable", "compile it again"),
        };
        Stop::refused(Reason::new(rule, chain(&error)).at(path.display().to_string(), None).help(help))
    })
}

fn unusable(path: &Path, error: &IndexError) -> Stop {
    let help = "give the image as the kernel's build makes it, without dwz, -gsplit-dwarf and link-time optimisation";
    let reason = Reason::new("debug-information-unusable", chain(error));
    Stop::refused(reason.at(path.display().to_string(), None).help(help))
}

fn unknown(names: &[String], who: &str) -> Result<(), Stop> {
    if names.is_empty() {
        return Ok(());
    }
    let message = format!("{who} no struct, union, enum or typedef {}", names.join(", "));
    Err(Stop::refused(
        Reason::new("unknown-type", message).help("give the name as it is in the source, with or without keyword"),
    ))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
