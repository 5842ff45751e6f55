//! The kernel's own commands for a unit.
//!
//! Comes in: what `make -n V=1 UNIT.o` prints: recipes as long shell lines, in which every command stands once quoted
//! (to be echoed) and once as itself. Decided: which commands make or change the object; those that only write notes
//! for make are dropped; one that we do not know is an error, because leaving it out could change the code. Goes out:
//! [`UnitCommands`], each a list of words, run without a shell.

use super::objtool;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Commands that make an object, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitCommands {
    /// The compiler.
    pub compile: Vec<String>,
    /// What changes the object afterwards (objtool, recordmcount).
    pub after: Vec<Vec<String>>,
}

/// Why the commands of a unit are not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// make would not compile it.
    #[error("make has no command that compiles {object}")]
    NotCompiled {
        /// The object.
        object: String,
    },
    /// It would be compiled in several ways.
    #[error("make has more than one command that compiles {object}")]
    Twice {
        /// The object.
        object: String,
    },
    /// A step that is not known.
    #[error("the kernel's build changes {object} by a step that is not known here: `{step}`")]
    UnknownStep {
        /// The object.
        object: String,
        /// The step.
        step: String,
    },
    /// Not a shell line.
    #[error("the command for {object} cannot be read: {message}")]
    Shell {
        /// The object.
        object: String,
        /// Why.
        message: String,
    },
}

/// Steps that write notes for make, check something, or are shell words around such steps.
const WITHOUT_EFFECT: &[&str] = &[
    "echo",
    "printf",
    "trap",
    "set",
    "rm",
    "fixdep",
    "check-local-export",
    "nm",
    "grep",
    "cat",
    "if",
    "then",
    "else",
    "fi",
    "{",
    "}",
    ":",
    "[",
    "test",
];

impl UnitCommands {
    /// All commands, in the order in which they are called.
    pub fn in_order(&self) -> impl Iterator<Item = &Vec<String>> {
        std::iter::once(&self.compile).chain(&self.after)
    }

    /// The commands of the unit `like`, for another source and object.
    #[must_use]
    pub fn with_source(&self, like: &Path, source: &Path, object: &Path) -> Self {
        let theirs = like.with_extension("o").display().to_string();
        let (like, object) = (like.display().to_string(), object.display().to_string());
        self.map(|word| {
            if word == theirs {
                object.clone()
            } else if word == like || word.ends_with(&format!("/{like}")) {
                source.display().to_string()
            } else if word.starts_with("-Wp,-M") {
                format!("-Wp,-MMD,{object}.d")
            } else {
                word.to_owned()
            }
        })
    }

    /// Finds the commands of one object in what make printed.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn parse(output: &str, object: &str) -> Result<Self, CommandError> {
        let joined = output.replace("\\\n", " ");
        let (mut compile, mut after): (Option<Vec<String>>, _) = (None, Vec::new());
        for line in joined.lines().filter(|line| line.contains(object)) {
            for step in steps(line) {
                // A step that does not name the object cannot change it.
                if !step.contains(object) {
                    continue;
                }
                let words = shell_words::split(step)
                    .map_err(|error| CommandError::Shell { object: object.to_owned(), message: error.to_string() })?;
                let Some(program) = words.first().map(|word| word.rsplit('/').next().unwrap_or(word)) else { continue };
                if program == "make" || WITHOUT_EFFECT.contains(&program) || !words.iter().any(|word| word == object) {
                    continue;
                }
                let output_follows = words.windows(2).any(|pair| pair[0] == "-o" && pair[1] == object);
                if output_follows && words.iter().any(|word| word == "-c") {
                    // make reaches a folder by several ways sometimes (arch/x86/pci); it is the same object then. It also
                    // says how it would compile a file of `arch/x86/lib` from `arch/x86`, which no full build does.
                    match compile.as_ref().filter(|known| **known != words) {
                        Some(known) => match (is_of_its_folder(known, object), is_of_its_folder(&words, object)) {
                            (true, false) => {}
                            (false, true) => compile = Some(words),
                            _ => return Err(CommandError::Twice { object: object.to_owned() }),
                        },
                        None => compile = Some(words),
                    }
                } else if matches!(program, "objtool" | "recordmcount") {
                    let words = if program == "objtool" { objtool::for_one_object(words) } else { words };
                    if !after.contains(&words) {
                        after.push(words);
                    }
                } else {
                    return Err(CommandError::UnknownStep { object: object.to_owned(), step: step.trim().to_owned() });
                }
            }
        }
        let compile = compile.ok_or_else(|| CommandError::NotCompiled { object: object.to_owned() })?;
        Ok(Self { compile, after })
    }

    /// Whether it is compiled for a loadable module.
    pub fn is_module(&self) -> bool {
        self.compile.iter().any(|word| word == "-DMODULE")
    }

    /// Names of the modules it is compiled for (`scripts/Makefile.lib`, `modname_flags`).
    pub fn module_names(&self) -> Vec<String> {
        let defined = self.compile.iter().find_map(|word| word.strip_prefix("-DKBUILD_MODNAME="));
        let names = defined.unwrap_or_default().trim_matches('"').split(':');
        names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    /// The same commands with the words changed.
    #[must_use]
    pub fn map(&self, change: impl Fn(&str) -> String) -> Self {
        let all = |words: &Vec<String>| words.iter().map(|word| change(word)).collect::<Vec<_>>();
        Self { compile: all(&self.compile), after: self.after.iter().map(all).collect() }
    }
}

/// Whether a command was made by the rules of the folder that the object is in (`modfile` of `scripts/Makefile.lib`).
fn is_of_its_folder(words: &[String], object: &str) -> bool {
    let folder = |path: &str| path.rsplit_once('/').map(|(folder, _)| folder.to_owned());
    let file = words.iter().find_map(|word| word.strip_prefix("-DKBUILD_MODFILE="));
    file.is_some_and(|file| folder(file.trim_matches('"')) == folder(object))
}

/// The simple commands of a shell line: cut at `;`, `&` and `|` outside quotes.
pub(super) fn steps(line: &str) -> Vec<&str> {
    let (mut steps, mut start, mut quote, mut escaped) = (Vec::new(), 0, None, false);
    for (index, c) in line.char_indices() {
        if escaped {
            escaped = false;
            continue;
        }
        match (quote, c) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (Some('\''), _) => {}
            (_, '\\') => escaped = true,
            (None, '\'' | '"') => quote = Some(c),
            (None, ';' | '&' | '|') => {
                steps.push(&line[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    steps.push(&line[start..]);
    steps
}

/// Calls a command in a folder. What programs say is not translated: some of it is read.
///
/// # Errors
/// When the program cannot be started.
pub fn call(words: &[String], folder: &Path) -> io::Result<Output> {
    let (program, arguments) = words.split_first().expect("a command has at least its program");
    Command::new(program).args(arguments).current_dir(folder).env("LC_ALL", "C").stdin(Stdio::null()).output()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"make -f /src/scripts/Makefile.build obj=dir \
need-builtin=1 \
dir/unit.o
set -e;  echo '  cc -Wp,-MMD,dir/.unit.o.d -I/src/include -DNAME='\''"dir/unit"'\'' -c -o dir/unit.o /src/dir/unit.c ; ./tools/objtool/objtool --orc dir/unit.o';  trap 'rm -f dir/unit.o; kill $$' HUP; cc -Wp,-MMD,dir/.unit.o.d -I/src/include -DNAME='"dir/unit"' -c -o dir/unit.o /src/dir/unit.c   ; ./tools/objtool/objtool --orc   dir/unit.o; scripts/basic/fixdep dir/.unit.o.d dir/unit.o 'cc -c -o dir/unit.o; ./tools/objtool/objtool dir/unit.o' > dir/.unit.o.cmd; rm -f dir/.unit.o.d
set -e;  echo '  /src/scripts/check-local-export dir/unit.o';  /src/scripts/check-local-export dir/unit.o
set -e;  { echo ; echo 'dir/unit.o: $(wildcard ./tools/objtool/objtool)' ; } >> dir/.unit.o.cmd
set -e;  if nm dir/unit.o 2>/dev/null | grep -q __ksymtab; then cc -E -D__GENKSYMS__ -o x /src/dir/unit.c | genksyms >> dir/.unit.o.cmd; fi
cc -c -o dir/unit.other.o /src/dir/unit.other.c
"#;

    #[test]
    fn the_commands_are_taken_from_the_recipe() {
        let commands = UnitCommands::parse(SAMPLE, "dir/unit.o").expect("known steps only");
        assert_eq!(
            commands.compile,
            [
                "cc",
                "-Wp,-MMD,dir/.unit.o.d",
                "-I/src/include",
                "-DNAME=\"dir/unit\"",
                "-c",
                "-o",
                "dir/unit.o",
                "/src/dir/unit.c"
            ]
        );
        assert_eq!(commands.after, [["./tools/objtool/objtool", "--orc", "dir/unit.o"]]);
        assert!(!commands.is_module());
        let flags = r#"-DMODULE -DKBUILD_MODNAME='"one_module"'"#;
        let module = UnitCommands::parse(&SAMPLE.replace("-I/src/include", flags), "dir/unit.o").expect("known");
        assert!(module.is_module());
        assert_eq!(module.module_names(), ["one_module"]);
    }

    #[test]
    fn what_is_not_known_is_not_left_out() {
        let stripped = format!("{SAMPLE}objcopy --strip-debug dir/unit.o\n");
        let error = UnitCommands::parse(&stripped, "dir/unit.o").expect_err("an unknown step");
        assert!(
            matches!(&error, CommandError::UnknownStep { step, .. } if step == "objcopy --strip-debug dir/unit.o"),
            "{error}"
        );
        let error = UnitCommands::parse(SAMPLE, "dir/none.o").expect_err("another object");
        assert_eq!(error, CommandError::NotCompiled { object: "dir/none.o".to_owned() });
        let twice = format!("{SAMPLE}cc -m16 -c -o dir/unit.o /src/dir/unit.c\n");
        assert!(matches!(UnitCommands::parse(&twice, "dir/unit.o"), Err(CommandError::Twice { .. })));
        let again = SAMPLE.repeat(2);
        assert_eq!(UnitCommands::parse(&again, "dir/unit.o"), UnitCommands::parse(SAMPLE, "dir/unit.o"));
        let from = |folder: &str| format!("cc -DKBUILD_MODFILE='\"{folder}unit\"' -c -o dir/unit.o /src/dir/unit.c\n");
        let both = format!("{}{}", from(""), from("dir/"));
        let commands = UnitCommands::parse(&both, "dir/unit.o").expect("the one of its folder");
        assert_eq!(commands.compile[1], "-DKBUILD_MODFILE=\"dir/unit\"");
        let open = "cc -c -o dir/unit.o 'x\n";
        assert!(matches!(UnitCommands::parse(open, "dir/unit.o"), Err(CommandError::Shell { .. })));
    }
}
