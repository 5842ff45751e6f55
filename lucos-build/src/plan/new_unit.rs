//! Units that a Makefile of the diff adds.
//!
//! Comes in: a new source, and how the kernel's build compiles its neighbours. Decided: which of them shows how it is compiled.
//! Goes out: the unit with its commands.

use super::Plan;
use crate::kbuild::command::UnitCommands;
use crate::kbuild::compile::Unit;
use crate::pipeline::Stop;
use crate::progress::Progress;
use crate::report::Reason;
use crate::scope::NewUnit;
use std::path::Path;

impl Plan<'_, '_> {
    /// A new unit, compiled like one of the same object or folder that has no options of its own.
    pub(super) fn new_unit(&self, new: &NewUnit, progress: &Progress) -> Result<Unit, Stop> {
        let listing = self.folder.listing(self.request, progress).map_err(Stop::failed)?;
        let folder = new.source.parent().unwrap_or(Path::new(""));
        let rules = ["Makefile", "Kbuild"]
            .iter()
            .find_map(|name| std::fs::read_to_string(self.request.source.join(folder).join(name)).ok());
        let rules = rules.unwrap_or_default();
        let beside = listing.units.iter().filter(|(unit, listed)| {
            unit.parent() == Some(folder)
                && unit.extension().is_some_and(|extension| extension == "c")
                && listed.iter().all(|listed| listed.module.is_none())
                && !rules.contains(&format!("_{}.o", stem(unit)))
        });
        for (unit, _) in beside {
            let commands = self.commands(unit, None)?;
            let name = commands.compile.iter().find_map(|word| word.strip_prefix("-DKBUILD_MODNAME="));
            let name = name.unwrap_or_default().trim_matches('"').to_owned();
            let fits = match &new.composite {
                Some(composite) => name == identifier(composite),
                None => name == identifier(&stem(unit)),
            };
            if fits {
                let commands = renamed(&commands, unit, &new.source, new.composite.is_none());
                return Ok(Unit { name: new.source.clone(), source: new.source.clone(), new: true, commands });
            }
        }
        let what = new.composite.as_ref().map_or_else(|| "its folder".to_owned(), |composite| format!("{composite}.o"));
        let message = format!(
            "no unit of {what} is built in and has no compiler options of its own, so its options are not known"
        );
        let reason = Reason::new("new-file", message).at(new.source.display().to_string(), None);
        Err(Stop::refused(reason.help("put the new functions into an existing .c file")))
    }
}

fn stem(unit: &Path) -> String {
    unit.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// A name as it stands in macros (scripts/Makefile.lib, `name-fix`).
fn identifier(name: &str) -> String {
    name.replace(['-', ','], "_")
}

/// The commands of a unit for another one of its folder. `own`: the object's name follows the source.
fn renamed(commands: &UnitCommands, from: &Path, to: &Path, own: bool) -> UnitCommands {
    let text = |path: &Path| path.display().to_string();
    let (old, new) = (text(&from.with_extension("")), text(&to.with_extension("")));
    let (old_name, new_name) = (identifier(&stem(from)), identifier(&stem(to)));
    let (old_object, new_object) = (text(&from.with_extension("o")), text(&to.with_extension("o")));
    let folder = from.parent().map(text).unwrap_or_default();
    commands.map(|word| {
        if word == old_object {
            new_object.clone()
        } else if word.starts_with("-Wp,-M") {
            word.replace(&format!("{folder}/.{}.o.d", stem(from)), &format!("{folder}/.{}.o.d", stem(to)))
        } else if word.ends_with(&format!("/{old}.c")) {
            format!("{}{new}.c", &word[..word.len() - old.len() - 2])
        } else if word == format!("-DKBUILD_BASENAME=\"{old_name}\"") {
            format!("-DKBUILD_BASENAME=\"{new_name}\"")
        } else if own && word.starts_with("-DKBUILD_MODFILE=") {
            word.replace(&old, &new)
        } else if own && (word.starts_with("-DKBUILD_MODNAME=") || word.starts_with("-D__KBUILD_MODNAME=")) {
            word.replace(&old_name, &new_name)
        } else {
            word.to_owned()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_unit_is_compiled_like_its_neighbour() {
        let line = "gcc -Wp,-MMD,fs/.a-b.o.d -DKBUILD_MODFILE='\"fs/a-b\"' -DKBUILD_BASENAME='\"a_b\"' -DKBUILD_MODNAME='\"a_b\"' -c -o fs/a-b.o /src/fs/a-b.c";
        let commands = UnitCommands::parse(line, "fs/a-b.o").expect("a command");
        let new = renamed(&commands, Path::new("fs/a-b.c"), Path::new("fs/new.c"), true);
        assert_eq!(
            shell_words::join(&new.compile),
            "gcc -Wp,-MMD,fs/.new.o.d '-DKBUILD_MODFILE=\"fs/new\"' '-DKBUILD_BASENAME=\"new\"' '-DKBUILD_MODNAME=\"new\"' -c -o fs/new.o /src/fs/new.c"
        );
        let part = renamed(&commands, Path::new("fs/a-b.c"), Path::new("fs/new.c"), false);
        assert!(part.compile.contains(&"-DKBUILD_MODNAME=\"a_b\"".to_owned()), "{part:?}");
    }
}
