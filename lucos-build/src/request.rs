//! From what was typed to checked inputs.
//!
//! Comes in: [`BuildArgs`]. Decided: where each input is, and that all of them belong to one kernel build. Goes out:
//! [`Request`]; or every reason why the inputs do not fit, at once.

use crate::args::BuildArgs;
use crate::identity::{self, Config, KernelVersion};
use crate::inputs::{Found, NotFound, OF_BUILD, Places, is_source};
use crate::kbuild::given::Given;
use crate::pipeline::Stop;
use crate::progress::Progress;
use crate::report::{Reason, Report};
use prelink::dwarf::DwarfError;
use prelink::units::UnitIndex;
use prelink::vmlinux::{ImageError, KernelImage};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Checked inputs of a build.
#[derive(Debug, Clone)]
pub struct Request {
    /// The source tree, without symbolic links in its path.
    pub source: PathBuf,
    /// The configuration's text.
    pub config: String,
    /// The compiler.
    pub compiler: Compiler,
    /// Release, as `uname -r` prints it.
    pub release: String,
    /// GNU build id.
    pub build_id: Vec<u8>,
    /// Units to compile at a time.
    pub jobs: usize,
    /// Where to keep sources, objects and commands.
    pub keep_dir: Option<PathBuf>,
    /// The folder that the kernel was built in, if it was given.
    pub build: Option<Given>,
}

/// The compiler of the kernel.
#[derive(Debug, Clone)]
pub struct Compiler {
    /// How to call it.
    pub program: PathBuf,
    /// The first line it says of itself.
    pub version: String,
}

/// Why an input cannot be used, apart from being the wrong one.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// A file cannot be read.
    #[error("cannot read {what} {}", path.display())]
    Read {
        /// What it is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The image cannot be opened.
    #[error("cannot open the kernel image")]
    Image(#[from] ImageError),
    /// The debug information is damaged.
    #[error("the debug information of the kernel image cannot be used")]
    Dwarf(#[from] DwarfError),
    /// An input was not found.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// No such compiler.
    #[error("no compiler: the kernel was built with `{recorded}`; tried {}; install it or name it with --cc", tried.join(", "))]
    NoCompiler {
        /// What the configuration says.
        recorded: String,
        /// Programs that could not be started.
        tried: Vec<String>,
    },
}

/// Reads the diff.
///
/// # Errors
/// [`RequestError::Read`].
pub fn read_diff(path: &Path) -> Result<Vec<u8>, RequestError> {
    if path.as_os_str() == "-" {
        let mut diff = Vec::new();
        let read = std::io::stdin().lock().read_to_end(&mut diff);
        return read.map(|_| diff).map_err(|source| RequestError::Read { what: "the diff", path: "-".into(), source });
    }
    read("the diff", path)
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, RequestError> {
    std::fs::read(path).map_err(|source| RequestError::Read { what, path: path.to_owned(), source })
}

/// Opens the image.
///
/// # Errors
/// Refused when it is no kernel image; failed when it cannot be read.
pub fn open_image(path: &Path) -> Result<KernelImage, Stop> {
    let refuse = |error: &dyn std::error::Error| {
        let mut message = error.to_string();
        if let Some(source) = error.source()
            && !message.contains(&source.to_string())
        {
            message = format!("{message}: {source}");
        }
        let help = "give the uncompressed vmlinux with symbols, from the kernel's debug package, with --vmlinux";
        Stop::refused(Reason::new("not-a-kernel-image", message).at(path.display().to_string(), None).help(help))
    };
    KernelImage::open(path).map_err(|error| match &error {
        ImageError::Io { .. } => Stop::failed(RequestError::Image(error)),
        ImageError::Elf { .. } | ImageError::NotAKernel { .. } => refuse(&error),
    })
}

/// Finds and checks everything.
///
/// # Errors
/// Refused with all reasons when inputs do not belong to each other; failed when one cannot be found or read.
pub fn identify(
    args: &BuildArgs,
    build: Option<Given>,
    image: &KernelImage,
    units: &UnitIndex<'_>,
    report: &mut Report,
    progress: &Progress,
) -> Result<Request, Stop> {
    let kernel = KernelVersion::of(image.banner(), image.release());
    let inputs = &mut report.inputs;
    inputs.release = Some(image.release().to_owned());
    inputs.build_id = Some(image.build_id().iter().map(|byte| format!("{byte:02x}")).collect());
    let built_in = units.iter().map(|unit| Path::new(&unit.comp_dir)).find(|folder| folder.is_absolute());
    let vmlinux = args.vmlinux();
    let places = Places { vmlinux: &vmlinux, release: image.release(), version: &kernel.version, built_in };
    let built = |path: PathBuf| build.as_ref().map(|_| path);
    let folder = build.as_ref().map(|given| given.folder.clone()).unwrap_or_default();
    let tree = build.as_ref().map(|given| given.source.clone()).unwrap_or_default();
    let system_map = input(&args.system_map, built(folder.join("System.map")), |given| places.system_map(given))?;
    let config = input(&args.config, built(folder.join(".config")), |given| places.config(given))?;
    let source = input(&args.source, built(tree), |given| places.source(given))?;
    for (what, found) in [("System.map", &system_map), ("configuration", &config), ("source", &source)] {
        if found.how != "given" {
            progress.say(&format!("{what}: {} ({})", found.path.display(), found.how));
        }
    }
    inputs.system_map = Some(system_map.clone());
    inputs.config = Some(config.clone());
    inputs.source = Some(source.clone());

    let mut reasons = Vec::new();
    let map = read("System.map", &system_map.path).map_err(Stop::failed)?;
    let given = args.system_map.is_some();
    reasons.extend(identity::check_system_map(&map, &system_map.path.display().to_string(), given, image.symbols()));
    reasons.extend(check_tree(&source, &kernel)?);
    let text = read("the configuration", &config.path).map_err(Stop::failed)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let config_path = config.path.display().to_string();
    reasons.extend(identity::check_config(&text, &config_path, &kernel, image.banner(), image.symbols()));
    if !reasons.is_empty() {
        // A compiler for a wrong configuration is not worth a look.
        return Err(Stop::Refused(reasons));
    }
    let recorded = build.as_ref().map(|given| given.compiler.as_path());
    let compiler = find_compiler(args.cc.as_deref().or(recorded), &Config::parse(&text))?;
    reasons.extend(identity::check_producers(units.iter().filter(|unit| unit.is_c()), &compiler.version));
    if !reasons.is_empty() {
        return Err(Stop::Refused(reasons));
    }
    let how = match (&args.cc, &build) {
        (Some(_), _) => "given",
        (None, Some(_)) => OF_BUILD,
        (None, None) => "named by the configuration",
    };
    inputs.compiler = Some(Found { path: compiler.program.clone(), how: how.to_owned() });
    inputs.compiler_version = Some(compiler.version.clone());
    if args.cc.is_none() {
        progress.say(&format!("compiler: {} ({})", compiler.program.display(), compiler.version));
    }
    let source = match &build {
        // As the recorded commands name it.
        Some(given) if source.how == OF_BUILD => given.source.clone(),
        _ => source.path.canonicalize().map_err(|error| {
            Stop::failed(RequestError::Read { what: "the source tree", path: source.path, source: error })
        })?,
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Request {
        source,
        config: text,
        compiler,
        release: image.release().to_owned(),
        build_id: image.build_id().to_vec(),
        jobs: args.jobs.map_or(processors, usize::from),
        keep_dir: args.keep_dir.clone(),
        build,
    })
}

/// An input that was given, or that the build folder has, or that is looked for.
fn input(
    given: &Option<PathBuf>,
    built: Option<PathBuf>,
    look: impl Fn(Option<&Path>) -> Result<Found, NotFound>,
) -> Result<Found, Stop> {
    match (given, built) {
        (None, Some(path)) => Ok(Found { path, how: OF_BUILD.to_owned() }),
        (given, _) => look(given.as_deref()).map_err(RequestError::from).map_err(Stop::failed),
    }
}

fn check_tree(source: &Found, kernel: &KernelVersion) -> Result<Vec<Reason>, Stop> {
    let path = source.path.display().to_string();
    if !is_source(&source.path) {
        let message = "this is no kernel source tree: Makefile, Kbuild or init/main.c is missing";
        return Ok(vec![
            Reason::new("wrong-source", message).at(path, None).help("give the full source with --source"),
        ]);
    }
    let makefile = read("the Makefile", &source.path.join("Makefile")).map_err(Stop::failed)?;
    let changelog = std::fs::read(source.path.join("debian/changelog")).ok();
    let changelog = changelog.as_deref().map(String::from_utf8_lossy);
    Ok(identity::check_source(&String::from_utf8_lossy(&makefile), changelog.as_deref(), &path, kernel))
}

/// The compiler that was given, or the first of the usual names that is the recorded one.
fn find_compiler(given: Option<&Path>, config: &Config<'_>) -> Result<Compiler, Stop> {
    let recorded = config.compiler().unwrap_or_default();
    let [gcc, clang] = ["CONFIG_CC_IS_GCC", "CONFIG_CC_IS_CLANG"].map(|option| config.get(option) == Some("y"));
    if !gcc && !clang {
        let message = format!("the kernel was built with `{recorded}`; gcc and clang are known");
        return Err(Stop::refused(Reason::new("compiler-unsupported", message)));
    }
    let name = recorded.split_whitespace().next().unwrap_or("gcc");
    let candidates: Vec<PathBuf> = match given {
        Some(program) => vec![program.to_owned()],
        None => {
            let major =
                config.get("CONFIG_GCC_VERSION").and_then(|version| version.parse::<u32>().ok()).unwrap_or(0) / 10000;
            let llvm = config.get("CONFIG_CLANG_VERSION").and_then(|version| version.parse::<u32>().ok()).unwrap_or(0);
            let mut names = match clang {
                false => vec![name.to_owned(), format!("gcc-{major}"), "gcc".to_owned()],
                true => vec!["clang".to_owned(), format!("clang-{}", llvm / 10000)],
            };
            names.dedup();
            names.into_iter().map(PathBuf::from).collect()
        }
    };
    let (mut others, mut tried) = (Vec::new(), Vec::new());
    for program in candidates {
        let output = Command::new(&program).arg("--version").env("LC_ALL", "C").output();
        match output {
            Ok(output) if output.status.success() => {
                let text = String::from_utf8_lossy(&output.stdout);
                let version = text.lines().next().unwrap_or_default().trim().to_owned();
                if identity::same_compiler(recorded, &version) {
                    return Ok(Compiler { program, version });
                }
                others.push(format!("{} is `{version}`", program.display()));
            }
            Ok(output) => tried.push(format!("{} ({})", program.display(), output.status)),
            Err(error) => tried.push(format!("{} ({error})", program.display())),
        }
    }
    if others.is_empty() {
        return Err(Stop::failed(RequestError::NoCompiler { recorded: recorded.to_owned(), tried }));
    }
    let message = format!("the kernel was built with `{recorded}`; {}", others.join(", "));
    let help = "install the compiler that built the kernel (its package version counts too), or name it with --cc";
    Err(Stop::refused(Reason::new("wrong-compiler", message).help(help)))
}
