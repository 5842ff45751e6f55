//! Changed Kconfig files.
//!
//! Comes in: the diff's Kconfig files. Decided: whether this kernel's configuration stays what it is. Goes out: a note, or the reason.

use super::Plan;
use crate::faults::Faults;
use crate::identity::Config;
use crate::kbuild::compile::Side;
use crate::pipeline::Stop;
use crate::progress::Progress;
use crate::report::{Reason, Report};
use crate::scope::Scope;
use std::collections::BTreeSet;

impl Plan<'_, '_> {
    /// Whether changed Kconfig files give this kernel another configuration.
    pub(super) fn options(
        &self,
        scope: &Scope,
        faults: &mut Faults,
        report: &mut Report,
        progress: &Progress,
    ) -> Result<(), Stop> {
        progress.phase("configuring the kernel with the changed options");
        let kept = self.folder.kept_objects();
        let compile = self.compiler(&kept);
        compile.prepare(&[]).map_err(Stop::failed)?;
        let now = self.folder.configure(self.request, &compile.overlay(Side::Patched), &self.work.join("config"));
        let (before, now) = match (self.folder.config(), now) {
            (Ok(before), Ok(now)) => (before, now),
            (Err(error), _) | (_, Err(error)) => return Err(Stop::failed(error)),
        };
        let (before, now) = (Config::parse(&before), Config::parse(&now));
        let names: BTreeSet<&str> = before.iter().chain(now.iter()).map(|(name, _)| name).collect();
        let differ: Vec<String> = names
            .into_iter()
            .filter(|name| before.get(name) != now.get(name))
            .map(|name| {
                format!(
                    "{name} from {} to {}",
                    before.get(name).unwrap_or("not set"),
                    now.get(name).unwrap_or("not set")
                )
            })
            .collect();
        for file in &scope.options {
            let path = file.display().to_string();
            if differ.is_empty() {
                report.notes.push(format!("{path}: no effect (this kernel's configuration stays the same)"));
                continue;
            }
            let shown = differ.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            let message =
                format!("it changes this kernel's configuration: {shown}{}", if differ.len() > 5 { ", …" } else { "" });
            let reason = Reason::new("build-rules", message).at(path, None);
            faults.take(vec![reason.help("leave this file out of the diff, or reboot into the new kernel")], report)?;
        }
        Ok(())
    }
}
