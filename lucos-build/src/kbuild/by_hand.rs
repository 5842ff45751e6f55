//! Compiles an update, or hooks, written by hand.
//!
//! Comes in: the prepared build folder and a C file from anywhere. Decided: how it is compiled: as a unit of the kernel image is
//! (`--like`), with another source, so that it gets the same options and the same tools behind the compiler. Goes out: the object, or
//! what the compiler says.

use super::command::{self, CommandError, UnitCommands};
use super::{BuildFolder, KbuildError, io};
use crate::identity::Config;
use crate::request::Request;
use std::fs;
use std::path::{Path, PathBuf};

/// The header that the project ships.
pub const HEADER: &str = include_str!("../../../support/lucos.h");
/// Its name in an `#include`.
pub const HEADER_NAME: &str = "lucos.h";
/// The unit whose command compiles what is no unit of the kernel, if no other is named: built into every kernel with `CONFIG_IRQ_WORK`, which x86 selects.
pub const LIKE: &str = "kernel/irq_work.c";

/// Why there is no object.
#[derive(Debug, thiserror::Error)]
pub enum ByHandError {
    /// The command is not known, or a file cannot be used.
    #[error(transparent)]
    Kbuild(#[from] KbuildError),
    /// A program could not be started.
    #[error("cannot start `{program}`")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// The unit to compile it like is none of the kernel image.
    #[error("{0} is compiled for a loadable module, not for the kernel image; name a unit of the image with --like")]
    Module(String),
    /// It does not compile.
    #[error("it does not compile\n{0}")]
    Compile(String),
}

/// Compiles `source` like a unit of the kernel; the object goes into `work`.
///
/// # Errors
/// [`ByHandError`].
pub fn compile(
    folder: &BuildFolder,
    request: &Request,
    source: &Path,
    like: &Path,
    work: &Path,
) -> Result<PathBuf, ByHandError> {
    let commands = folder.commands(request, &[like.to_owned()])?;
    let (_, commands) = commands.into_iter().next().ok_or_else(|| {
        let object = like.with_extension("o").display().to_string();
        KbuildError::Command(CommandError::NotCompiled { object })
    })?;
    if commands.is_module() {
        return Err(ByHandError::Module(like.display().to_string()));
    }
    let source = source.canonicalize().map_err(io(source))?;
    let (include, stem) = (work.join("include"), source.file_stem().unwrap_or_default().to_string_lossy().into_owned());
    fs::create_dir_all(&include).map_err(io(&include))?;
    let header = include.join(HEADER_NAME);
    fs::write(&header, HEADER).map_err(io(&header))?;
    let object = work.join(format!("{stem}.o"));
    let mut commands = commands_for(&commands, like, &source, &object, &include, &request.source);
    if Config::parse(&request.config).get("CONFIG_CC_IS_GCC") == Some("y") {
        // Two functions with the same code stay two: each may replace another one.
        commands.compile.push("-fno-ipa-icf".to_owned());
    }
    for words in commands.in_order() {
        let program = &words[0];
        let output = command::call(words, &folder.path)
            .map_err(|source| ByHandError::Start { program: program.clone(), source })?;
        if !output.status.success() {
            let said = if output.stderr.is_empty() { output.stdout } else { output.stderr };
            let said = String::from_utf8_lossy(&said).replace(&format!("{}/", include.display()), "");
            let said = if said.trim().is_empty() { format!("{program}: {}", output.status) } else { said };
            return Err(ByHandError::Compile(said.trim_end().to_owned()));
        }
    }
    Ok(object)
}

/// The kernel's commands for `like`, with another source, object and name.
fn commands_for(
    commands: &UnitCommands,
    like: &Path,
    source: &Path,
    object: &Path,
    include: &Path,
    tree: &Path,
) -> UnitCommands {
    let name = identifier(&source.file_stem().unwrap_or_default().to_string_lossy());
    let mut commands = commands.with_source(like, source, object).map(|word| {
        // What messages and pr_debug call the unit (`scripts/Makefile.lib`, `name_flags`).
        let quoted = ["-DKBUILD_MODFILE=", "-DKBUILD_BASENAME=", "-DKBUILD_MODNAME="];
        match quoted.iter().find(|option| word.starts_with(*option)) {
            Some(option) => format!("{option}\"{name}\""),
            None if word.starts_with("-D__KBUILD_MODNAME=") => format!("-D__KBUILD_MODNAME=kmod_{name}"),
            None => word.to_owned(),
        }
    });
    let beside = like.parent().map(|folder| tree.join(folder)).unwrap_or_default();
    commands.compile.push(format!("-I{}", include.display()));
    // Headers that only files of that folder see.
    commands.compile.push("-iquote".to_owned());
    commands.compile.push(beside.display().to_string());
    // The folder of the author must not show in the object.
    if let Some(folder) = source.parent() {
        commands.compile.push(format!("-fmacro-prefix-map={}/=", folder.display()));
    }
    commands
}

/// A name that C takes for one.
fn identifier(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = name.chars().map(plain).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) || name.is_empty() { format!("_{name}") } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_that_of_the_unit_with_another_source() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let theirs = UnitCommands {
            compile: words(
                "gcc -Wp,-MMD,kernel/.irq_work.o.d -I/src/include -DKBUILD_MODNAME=\"irq_work\" -D__KBUILD_MODNAME=kmod_irq_work -c -o kernel/irq_work.o /src/kernel/irq_work.c",
            ),
            after: vec![words("./tools/objtool/objtool --orc kernel/irq_work.o")],
        };
        let [source, object, include] = ["/home/a/fix-1.c", "/w/fix-1.o", "/w/include"].map(Path::new);
        let ours = commands_for(&theirs, Path::new(LIKE), source, object, include, Path::new("/src"));
        assert_eq!(
            ours.compile.join(" "),
            "gcc -Wp,-MMD,/w/fix-1.o.d -I/src/include -DKBUILD_MODNAME=\"fix_1\" -D__KBUILD_MODNAME=kmod_fix_1 -c -o /w/fix-1.o \
             /home/a/fix-1.c -I/w/include -iquote /src/kernel -fmacro-prefix-map=/home/a/="
        );
        assert_eq!(ours.after[0].join(" "), "./tools/objtool/objtool --orc /w/fix-1.o");
        assert_eq!([identifier("2nd"), identifier("a b")], ["_2nd", "a_b"]);
    }
}
