//! The smallest diff around a changed file that compiles.
//!
//! Comes in: a [`Plan`] with whole `.c` files. Decided: which hunks of changed headers they need, from what the
//! compiler misses; hunks that turn out to be superfluous are left out again. Goes out: the plan, extended; it may
//! still not compile, which `lucos-build` then says.

use super::checker::Checker;
use super::complaints::Complaint;
use super::hunks::Role;
use super::plan::{Plan, Trees};
use crate::JobError;
use lucos_tests::official::{BuiltIn, Change};
use std::collections::BTreeSet;

/// Turns until a unit has to compile.
const TURNS: usize = 24;

/// Everything an assembly looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workbench<'a> {
    pub(crate) trees: &'a Trees,
    pub(crate) checker: &'a Checker,
    pub(crate) built_in: &'a BuiltIn,
}

impl Workbench<'_> {
    /// Adds the header hunks that the plan's sources need.
    pub(crate) fn assemble(&self, plan: &mut Plan) -> Result<(), JobError> {
        let before: BTreeSet<(String, usize)> = plan.hunks().into_iter().collect();
        let units = self.units(plan);
        for unit in &units {
            self.satisfy(unit, plan)?;
        }
        let added: Vec<_> = plan.hunks().into_iter().filter(|hunk| !before.contains(hunk)).collect();
        if added.len() > 1 && self.compile(&units, plan)? {
            self.prune(&units, added, plan)?;
        }
        Ok(())
    }

    /// Leaves out again what is not needed: headers first, because hunks of one often need each other, then hunks; and
    /// again, because what is needed only by something left out can go as well.
    fn prune(&self, units: &[String], mut added: Vec<(String, usize)>, plan: &mut Plan) -> Result<(), JobError> {
        loop {
            let mut groups: Vec<Vec<(String, usize)>> =
                added.chunk_by(|one, two| one.0 == two.0).map(<[_]>::to_vec).collect();
            groups.extend(added.iter().map(|hunk| vec![hunk.clone()]));
            let before = added.len();
            for group in groups {
                let mut smaller = plan.clone();
                for (file, hunk) in &group {
                    smaller.remove_hunk(file, *hunk);
                }
                if smaller != *plan && self.compile(units, &smaller)? {
                    *plan = smaller;
                    added.retain(|hunk| !group.contains(hunk));
                }
            }
            if added.len() == before {
                return Ok(());
            }
        }
    }

    /// Units of the plan's sources; a source that is not built in (of a module) is its own.
    fn units(&self, plan: &Plan) -> Vec<String> {
        let mut units = BTreeSet::new();
        for source in plan.sources().filter(|file| self.trees.changed.get(*file) != Some(&Change::Deleted)) {
            let of = self.built_in.units_of(source);
            if of.is_empty() {
                units.insert(source.to_owned());
            }
            units.extend(of);
        }
        units.into_iter().collect()
    }

    fn compile(&self, units: &[String], plan: &Plan) -> Result<bool, JobError> {
        for unit in units {
            if !self.checker.complaints(unit, plan, self.trees)?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn satisfy(&self, unit: &str, plan: &mut Plan) -> Result<(), JobError> {
        let mut headers: Option<Vec<String>> = None;
        let before = plan.clone();
        for _ in 0..TURNS {
            let complaints = self.checker.complaints(unit, plan, self.trees)?;
            if complaints.is_empty() {
                return Ok(());
            }
            if headers.is_none() {
                let seen = self.checker.taken_in(unit, self.trees)?;
                headers = Some(seen.into_iter().filter(|file| self.is_changed_header(file)).collect());
            }
            if !self.help(&complaints, headers.as_deref().unwrap_or_default(), plan)? {
                break;
            }
        }
        // Nothing helped: the diff stays as small as it was.
        *plan = before;
        Ok(())
    }

    fn is_changed_header(&self, file: &str) -> bool {
        file.ends_with(".h") && self.trees.changed.contains_key(file)
    }

    /// Adds the most telling hunks for some complaints; whether there were any.
    pub(crate) fn help(&self, complaints: &[Complaint], headers: &[String], plan: &mut Plan) -> Result<bool, JobError> {
        let mut more = false;
        for name in complaints.iter().filter_map(|complaint| complaint.missing_file.as_deref()) {
            let is_it = |path: &str| path == name || path.ends_with(&format!("/{name}"));
            let found: Vec<&str> =
                self.trees.ending(&[".h", ".c"]).map(|(path, _)| path).filter(|path| is_it(path)).collect();
            for path in found {
                more |= plan.add_whole(path);
            }
        }
        if more {
            return Ok(true);
        }
        for role in [Role::Introduces, Role::Mentions, Role::Removes] {
            for name in complaints.iter().flat_map(|complaint| &complaint.names) {
                more |= self.add_hunks(name, role, headers, plan)?;
            }
            if more {
                return Ok(true);
            }
        }
        // An error inside a changed header: its hunks belong together.
        for header in headers.iter().filter(|header| complaints.iter().any(|complaint| complaint.file == **header)) {
            more |= self.add_all(header, plan)?;
        }
        if more {
            return Ok(true);
        }
        for name in complaints.iter().flat_map(|complaint| &complaint.line) {
            more |= self.add_hunks(name, Role::Introduces, headers, plan)?;
        }
        if more {
            return Ok(true);
        }
        for header in headers {
            more |= self.add_all(header, plan)?;
        }
        Ok(more)
    }

    fn add_hunks(&self, name: &str, role: Role, headers: &[String], plan: &mut Plan) -> Result<bool, JobError> {
        let mut more = false;
        for header in headers {
            let versions = self.trees.versions(header)?;
            for (hunk, _) in versions.roles(name).filter(|(_, found)| *found == role) {
                more |= self.add(header, hunk, plan);
            }
        }
        Ok(more)
    }

    fn add_all(&self, header: &str, plan: &mut Plan) -> Result<bool, JobError> {
        let mut more = false;
        for hunk in 0..self.trees.versions(header)?.len() {
            more |= self.add(header, hunk, plan);
        }
        Ok(more)
    }

    /// A file that comes or goes is taken wholly.
    fn add(&self, file: &str, hunk: usize, plan: &mut Plan) -> bool {
        match self.trees.changed.get(file) {
            Some(Change::Modified) => plan.add_hunk(file, hunk),
            Some(Change::New | Change::Deleted) => plan.add_whole(file),
            None => false,
        }
    }
}
