//! The loadable modules that a diff changes.
//!
//! Comes in: how each unit is compiled, which says what module it goes into (`-DKBUILD_MODNAME`, `scripts/Makefile.lib`).
//! Decided: where the module's file is, and that it was built for this kernel. Goes out: [`Modules`]: an image for each
//! module, and which unit belongs to which; or the reasons why a unit's module cannot be updated.

use crate::args::BuildArgs;
use crate::kbuild::command::UnitCommands;
use crate::pipeline::Stop;
use crate::report::Reason;
use prelink::module::{self, ModuleError};
use prelink::vmlinux::KernelImage;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How module files may be packed: the ending, the program that unpacks to standard output, and its package.
const PACKED: [(&str, &str, &str); 3] = [("xz", "xz", "xz-utils"), ("zst", "zstd", "zstd"), ("gz", "gzip", "gzip")];

/// A module file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ModuleFileError {
    /// The file system.
    #[error("cannot read the module {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The program that unpacks it.
    #[error("cannot unpack the module {} with `{program}` (package {package}): {message}", path.display())]
    Unpack {
        /// The file.
        path: PathBuf,
        /// The program.
        program: &'static str,
        /// What has it.
        package: &'static str,
        /// What went wrong.
        message: String,
    },
}

/// A module's file, unpacked.
struct ModuleFile {
    path: PathBuf,
    how: &'static str,
    bytes: Vec<u8>,
}

/// The modules of a diff.
#[derive(Default)]
pub struct Modules {
    images: Vec<KernelImage>,
    of_unit: BTreeMap<PathBuf, usize>,
    /// Files used: module, path, how found.
    pub found: Vec<(String, PathBuf, &'static str)>,
}

impl Modules {
    /// Finds and opens the modules of all units that are compiled for one.
    ///
    /// # Errors
    /// Refused with all reasons; failed when a file cannot be read.
    pub fn find(args: &BuildArgs, kernel: &KernelImage, commands: &[(PathBuf, UnitCommands)]) -> Result<Self, Stop> {
        let mut modules = Self::default();
        let (mut by_name, mut reasons) = (BTreeMap::new(), Vec::new());
        let mut given = None;
        for (unit, commands) in commands.iter().filter(|(_, commands)| commands.is_module()) {
            let at = |reason: Reason| reason.at(unit.display().to_string(), None);
            let name = match only_module(commands) {
                Ok(name) => name,
                Err(names) => {
                    let message = format!("it is compiled once for {} modules: {}", names.len(), names.join(", "));
                    let help = "leave this file out of the diff; a unit of several modules cannot be updated yet";
                    reasons.push(at(Reason::new("compiled-twice", message).help(help)));
                    continue;
                }
            };
            if let Some(&index) = by_name.get(&name) {
                modules.of_unit.insert(unit.clone(), index);
                continue;
            }
            if given.is_none() {
                given = Some(read_given(args).map_err(Stop::failed)?);
            }
            let known = given.iter().flatten().find(|(known, ..)| *known == name);
            let found = match known {
                Some((_, path, bytes)) => Some(ModuleFile { path: path.clone(), how: "given", bytes: bytes.clone() }),
                None => search(args, kernel.release(), &name).map_err(Stop::failed)?,
            };
            let Some(ModuleFile { path, how, bytes }) = found else {
                let folders: Vec<String> =
                    folders(args, kernel.release()).iter().map(|(path, _)| path.display().to_string()).collect();
                let message = format!("it belongs to module {name}, whose file is in none of {}", folders.join(", "));
                let help = "give the module's file with --module, or the kernel's folder of modules with --modules";
                reasons.push(at(Reason::new("module-not-found", message).help(help)));
                continue;
            };
            match module::open(&path, &bytes, kernel) {
                Ok(image) => {
                    let index = modules.images.len();
                    by_name.insert(name.clone(), index);
                    modules.images.push(image);
                    modules.of_unit.insert(unit.clone(), index);
                    modules.found.push((name.clone(), path, how));
                }
                Err(error @ (ModuleError::OtherKernel { .. } | ModuleError::NotAModule(_) | ModuleError::Elf(_))) => {
                    let message = format!("{}: {error}", path.display());
                    let help = "give the module of this very kernel build with --module or --modules";
                    reasons.push(at(Reason::new("wrong-module", message).help(help)));
                }
            }
        }
        if reasons.is_empty() { Ok(modules) } else { Err(Stop::Refused(reasons)) }
    }

    /// The image that a unit's code is in, if it is a module.
    pub fn of(&self, unit: &Path) -> Option<&KernelImage> {
        self.of_unit.get(unit).map(|&index| &self.images[index])
    }

    /// The modules, by name.
    pub fn images(&self) -> Vec<&KernelImage> {
        let mut images: Vec<&KernelImage> = self.images.iter().collect();
        images.sort_by_key(|image| image.module().map(|module| module.name.clone()));
        images
    }
}

/// The module that a unit is compiled for, or all of them.
fn only_module(commands: &UnitCommands) -> Result<String, Vec<String>> {
    <[String; 1]>::try_from(commands.module_names()).map(|[name]| name)
}

/// Name of a module, by its file: `-` becomes `_` (`scripts/Makefile.lib`, `name-fix-token`).
fn name_of(file: &Path) -> String {
    let base = file.file_name().unwrap_or_default().to_string_lossy();
    base.split('.').next().unwrap_or_default().replace('-', "_")
}

/// The files that were given, with their names.
fn read_given(args: &BuildArgs) -> Result<Vec<(String, PathBuf, Vec<u8>)>, ModuleFileError> {
    let one = |path: &PathBuf| {
        let bytes = read(path)?;
        let info = module::info(&bytes).ok().and_then(|info| info.get("name").cloned());
        let name = info.unwrap_or_else(|| name_of(path));
        Ok((name, path.clone(), bytes))
    };
    args.module.iter().map(one).collect()
}

/// Folders with modules, and how they were found.
fn folders(args: &BuildArgs, release: &str) -> Vec<(PathBuf, &'static str)> {
    if let Some(folder) = &args.modules {
        return vec![(folder.clone(), "in the given folder")];
    }
    let vmlinux = args.vmlinux();
    let real = vmlinux.canonicalize().unwrap_or(vmlinux);
    let beside = real.parent().map(Path::to_owned).unwrap_or_default();
    vec![
        (beside.join("lib/modules").join(release), "beside vmlinux"),
        (beside, "beside vmlinux"),
        (Path::new("/lib/modules").join(release), "in /lib/modules"),
        (Path::new("/usr/lib/modules").join(release), "in /usr/lib/modules"),
    ]
}

/// The file of a module in the folders: those that the build lists, or else all that lie there.
fn search(args: &BuildArgs, release: &str, name: &str) -> Result<Option<ModuleFile>, ModuleFileError> {
    let packed = PACKED.iter().map(|(ending, ..)| format!(".{ending}"));
    let endings: Vec<String> = std::iter::once(String::new()).chain(packed).collect();
    for (folder, how) in folders(args, release) {
        // Written by the build, and installed with the modules; files of other builds beside it are not in it.
        let order = std::fs::read_to_string(folder.join("modules.order"));
        let listed: Vec<PathBuf> = match order {
            Ok(order) => order.lines().map(PathBuf::from).filter(|path| name_of(path) == name).collect(),
            Err(_) if args.modules.is_some() => beneath(&folder, name, 0),
            Err(_) => Vec::new(),
        };
        for path in listed {
            for ending in &endings {
                let mut file = folder.join(&path).into_os_string();
                file.push(ending);
                let file = PathBuf::from(file);
                if file.is_file() {
                    return read(&file).map(|bytes| Some(ModuleFile { path: file, how, bytes }));
                }
            }
        }
    }
    Ok(None)
}

/// Files of that module's name in a folder.
fn beneath(folder: &Path, name: &str, depth: usize) -> Vec<PathBuf> {
    const DEPTH_LIMIT: usize = 12;
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() && !path.is_symlink() && depth < DEPTH_LIMIT {
            found.extend(beneath(&path, name, depth + 1));
        } else if name_of(&path) == name && path.to_string_lossy().contains(".ko") {
            found.push(path);
        }
    }
    found
}

/// A module file, unpacked.
fn read(path: &Path) -> Result<Vec<u8>, ModuleFileError> {
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    let Some((_, program, package)) = PACKED.into_iter().find(|(known, ..)| *known == ending) else {
        return std::fs::read(path).map_err(|source| ModuleFileError::Read { path: path.to_owned(), source });
    };
    let failed = |message: String| ModuleFileError::Unpack { path: path.to_owned(), program, package, message };
    let output = Command::new(program).arg("-dc").arg("--").arg(path).stdin(Stdio::null()).output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_named_by_their_files() {
        for (file, name) in [("fs/nls/nls_ascii", "nls_ascii"), ("sound/snd-pcm", "snd_pcm"), ("x/a-b.ko.xz", "a_b")] {
            assert_eq!(name_of(Path::new(file)), name);
        }
    }

    /// The build joins the names of several modules by colons (`scripts/Makefile.lib`, `modname`).
    #[test]
    fn a_unit_may_be_of_several_modules() {
        let of = |names: &str| {
            let compile = ["gcc", "-DMODULE", &format!("-DKBUILD_MODNAME=\"{names}\"")].map(str::to_owned).to_vec();
            only_module(&UnitCommands { compile, after: Vec::new() })
        };
        assert_eq!(of("hclge").expect("one module"), "hclge");
        assert_eq!(of("hclge:hclgevf").expect_err("two modules"), ["hclge", "hclgevf"]);
        assert!(of("").expect_err("no name").is_empty());
    }

    #[test]
    fn packed_files_are_unpacked() {
        let folder = tempfile::tempdir().expect("a folder");
        let plain = folder.path().join("a.ko");
        std::fs::write(&plain, b"contents").expect("written");
        let packed = Command::new("gzip").arg("-k").arg(&plain).status().expect("gzip is everywhere");
        assert!(packed.success());
        assert_eq!(read(&folder.path().join("a.ko.gz")).expect("unpacked"), b"contents");
        std::fs::write(folder.path().join("b.ko.gz"), b"no gzip").expect("written");
        assert!(matches!(read(&folder.path().join("b.ko.gz")), Err(ModuleFileError::Unpack { .. })));
    }
}
