//! What make says of units: how each is compiled, and which there are.
//!
//! Comes in: a prepared [`BuildFolder`]. Decided: what is known from earlier builds; make is asked for the rest. Goes out: commands
//! of units and the [`Listing`], both kept in the folder.

use super::command::UnitCommands;
use super::error::{KbuildError, io};
use super::given::{Given, GivenError};
use super::listing::Listing;
use super::make::{KCFLAGS, make};
use super::{BuildFolder, objtool};
use crate::identity::Config;
use crate::progress::Progress;
use crate::request::Request;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

impl BuildFolder {
    /// The commands of units, in their order. They are kept in the folder, because make needs a second to tell them.
    ///
    /// # Errors
    /// [`KbuildError`].
    pub fn commands(&self, request: &Request, units: &[PathBuf]) -> Result<Vec<(PathBuf, UnitCommands)>, KbuildError> {
        if let Some(given) = &self.given {
            return given_commands(given, request, units);
        }
        let kept = self.kept.join(".lucos-commands");
        fs::create_dir_all(&kept).map_err(io(&kept))?;
        let mut known: BTreeMap<&Path, UnitCommands> = BTreeMap::new();
        for unit in units {
            let text = fs::read(self.commands_file(unit)).ok();
            if let Some(commands) = text.and_then(|text| serde_json::from_slice(&text).ok()) {
                known.insert(unit, commands);
            }
        }
        let unknown: Vec<&Path> = units.iter().map(PathBuf::as_path).filter(|unit| !known.contains_key(unit)).collect();
        if !unknown.is_empty() {
            known.extend(self.ask(request, &unknown)?);
        }
        Ok(units.iter().filter_map(|unit| Some((unit.clone(), known.get(unit.as_path())?.clone()))).collect())
    }

    /// Asks make for the commands of units, and keeps them.
    fn ask<'u>(&self, request: &Request, units: &[&'u Path]) -> Result<Vec<(&'u Path, UnitCommands)>, KbuildError> {
        let objects: Vec<String> = units.iter().map(|unit| unit.with_extension("o").display().to_string()).collect();
        let output = make(request, &self.path)
            .args(["-n", "V=1", KCFLAGS, objtool::NOT_DELAYED])
            .args(&objects)
            .output()
            .map_err(KbuildError::Start)?;
        if !output.status.success() {
            return Err(KbuildError::Ask { output: String::from_utf8_lossy(&output.stderr).into_owned() });
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let parse = |(&unit, object): (&&'u Path, &String)| {
            let commands = UnitCommands::parse(&text, object)?;
            write_json(&self.commands_file(unit), &commands)?;
            Ok((unit, commands))
        };
        units.iter().zip(&objects).map(parse).collect()
    }

    /// All units of the kernel. The list and the commands of every unit are kept in the folder, because make needs half a
    /// minute to tell them.
    ///
    /// # Errors
    /// [`KbuildError`].
    pub fn listing(&self, request: &Request, progress: &Progress) -> Result<Listing, KbuildError> {
        if let Some(given) = &self.given {
            return given.listing().map_err(KbuildError::Given);
        }
        let path = self.kept.join(".lucos-listing.json");
        if let Some(listing) = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
            return Ok(listing);
        }
        progress.phase("asking make for all units of this kernel (once per kernel)");
        // With `-k`, because the image itself cannot be linked without the objects. The goal is that of a whole kernel.
        let goals =
            if Config::parse(&request.config).get("CONFIG_MODULES") == Some("y") { "modules" } else { "vmlinux" };
        let output = make(request, &self.path)
            .args(["-n", "-k", "V=1", KCFLAGS, objtool::NOT_DELAYED, goals])
            .stderr(Stdio::null())
            .output()
            .map_err(KbuildError::Start)?;
        let text = String::from_utf8_lossy(&output.stdout).replace("\\\n", " ");
        let mut kept = Vec::new();
        let listing = Listing::parse(&text, &request.source, |unit, commands| kept.push((unit.to_owned(), commands)));
        // init/main.c is in every kernel.
        if !listing.units.contains_key(Path::new("init/main.c")) {
            return Err(KbuildError::Ask { output: "make names no command for init/main.c".to_owned() });
        }
        let folder = self.kept.join(".lucos-commands");
        fs::create_dir_all(&folder).map_err(io(&folder))?;
        kept.par_iter().try_for_each(|(unit, commands)| write_json(&self.commands_file(unit), commands))?;
        write_json(&path, &listing)?;
        Ok(listing)
    }

    fn commands_file(&self, unit: &Path) -> PathBuf {
        let name = unit.display().to_string().replace('/', "%");
        self.kept.join(".lucos-commands").join(format!("{name}.json"))
    }
}

/// The commands that the kernel was built with, in the folder that was given.
fn given_commands(
    given: &Given,
    request: &Request,
    units: &[PathBuf],
) -> Result<Vec<(PathBuf, UnitCommands)>, KbuildError> {
    let config = Config::parse(&request.config);
    let commands = |unit: &PathBuf| match given.commands(unit, &config) {
        Ok(mut commands) => {
            // The one that was checked: by another name, or given in place of it.
            commands.compile[0] = request.compiler.program.display().to_string();
            Ok((unit.clone(), commands))
        }
        Err(GivenError::Command(error)) => Err(KbuildError::Command(error)),
        Err(error) => Err(KbuildError::Given(error)),
    };
    units.iter().map(commands).collect()
}

/// Writes a file aside and moves it to its place, so that another build never reads half of it.
fn write_json(path: &Path, value: &impl Serialize) -> Result<(), KbuildError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut aside = tempfile::NamedTempFile::new_in(folder).map_err(io(folder))?;
    serde_json::to_writer(&mut aside, value).map_err(|error| io(path)(error.into()))?;
    aside.persist(path).map_err(|error| io(path)(error.error))?;
    Ok(())
}
