//! The bundle of linked parts, and what the report says of it.
//!
//! Comes in: linked parts, the support object, the guest profile. Decided: nothing. Goes out: a [`Bundle`].

use super::Judge;
use crate::report::{DatumRow, FunctionRow, HookRow, Reason, Report, ReturnsRow, Verdict};
use lpk_format::{Bundle, GuestProfile, KernelId, Manifest, ModuleId, Omitted, Payload, UpdateType};
use prelink::link::{Linked, Returns};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;

impl Judge<'_, '_> {
    pub(super) fn bundle(
        &self,
        parts: Vec<(Option<ModuleId>, Linked)>,
        support: Option<Payload>,
        profile: GuestProfile,
        report: &mut Report,
    ) -> Bundle {
        let is_type_2 = report.verdict == Verdict::Type2;
        for (module, linked) in &parts {
            report.functions.extend(linked.manifest_functions.iter().map(|function| FunctionRow {
                name: function.name.clone(),
                unit: function.unit.clone(),
                module: module.as_ref().map(|module| module.name.clone()),
                old_address: function.old_address.map(|address| format!("{address:#x}")),
                old_size: function.old_size,
                new_size: function.new_size,
                returns:
                    linked.returns.get(&function.old_address.unwrap_or_default()).filter(|_| is_type_2).map(returns),
            }));
            report.data.extend(linked.manifest_data.iter().map(|datum| DatumRow {
                name: datum.name.clone(),
                unit: datum.unit.clone(),
                size: datum.size,
            }));
            report.hooks.extend(linked.payload.hooks.iter().map(|hook| HookRow {
                kind: hook.kind,
                subject: Some(hook.subject.name().to_owned()).filter(|name| !name.is_empty()),
            }));
        }
        let mut files: Vec<String> = self.changes.iter().map(|change| change.path.display().to_string()).collect();
        files.sort();
        files.dedup();
        let empty = Bundle {
            kernel: KernelId {
                build_id: self.image.build_id().to_vec(),
                release: self.image.release().to_owned(),
                banner: self.image.banner().to_owned(),
            },
            profile,
            manifest: Manifest {
                name: self.name.clone(),
                update_type: if is_type_2 { UpdateType::Type2 } else { UpdateType::Type1 },
                built_by: format!("lucos-build {}", env!("CARGO_PKG_VERSION")),
                diff_sha256: lpk_format::hex::encode(&Sha256::digest(&report.diff)),
                files,
                functions: Vec::new(),
                data: Vec::new(),
                left: Vec::new(),
                left_out: Vec::new(),
                omitted: Vec::new(),
                vouched: report.vouched.clone(),
                unchanged_modules: Vec::new(),
            },
            payload: Payload::default(),
            functions: Vec::new(),
            support: None,
            module: None,
            modules: Vec::new(),
        };
        let mut bundle = Bundle { support, ..empty.clone() };
        bundle.manifest.omitted = omitted(&report.omitted);
        let modules: BTreeSet<&String> = report.modules.iter().map(|unit| &unit.module).collect();
        bundle.manifest.unchanged_modules = modules.into_iter().cloned().collect();
        for (module, linked) in parts {
            let mut part = empty.clone();
            let into = if module.is_some() { &mut part } else { &mut bundle };
            into.manifest.functions = linked.manifest_functions;
            into.manifest.data = linked.manifest_data;
            into.manifest.left = if is_type_2 { linked.left } else { Vec::new() };
            into.manifest.left_out = linked.left_out;
            into.payload = linked.payload;
            into.functions = linked.functions;
            if !is_type_2 {
                // Nobody waits for threads inside then.
                into.functions.iter_mut().for_each(|function| function.returns.clear());
            }
            if module.is_some() {
                bundle.modules.push(Bundle { module, ..part });
            }
        }
        bundle
    }
}

/// What the report says of the return points of a function.
fn returns(found: &Returns) -> ReturnsRow {
    let points = match found {
        Ok(points) => points,
        Err(why) => return ReturnsRow { calls: 0, counterparts: 0, without: vec![why.to_string()] },
    };
    let without = points.iter().filter_map(|point| Some(format!("+{:#x}: {}", point.old, point.new.as_ref().err()?)));
    let without: Vec<String> = without.collect();
    ReturnsRow { calls: points.len(), counterparts: points.len() - without.len(), without }
}

/// What the bundle leaves out of the diff, for its manifest.
pub(super) fn omitted(reasons: &[Reason]) -> Vec<Omitted> {
    let mut omitted: Vec<Omitted> = reasons
        .iter()
        .map(|reason| Omitted {
            file: reason.file.clone().unwrap_or_default(),
            rule: reason.rule.clone(),
            message: reason.message.clone(),
        })
        .collect();
    omitted.sort();
    omitted.dedup();
    omitted
}
