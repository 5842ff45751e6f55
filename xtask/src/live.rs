//! What demo and benchmark share: a built bundle, and steps on a running guest that count only when they were seen.
//!
//! Comes in: a diff, a guest. Decided: nothing silently; a status other than 0 ends the job with what was said. Goes
//! out: [`Built`], and the times that `lucos-hv` reports.

use crate::JobError;
use lucos_tests::commands::{self, Hv, Outcome};
use lucos_tests::guest::Guest;
use lucos_tests::kernels::Kernel;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A bundle with what `lucos-build` said of it.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) name: String,
    pub(crate) bundle: PathBuf,
    pub(crate) outcome: Outcome,
}

/// A replaced function: name and link address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) old_address: u64,
}

impl Built {
    /// Writes the diff to `NAME.diff` in `dir` and builds `NAME.lpk` of it; the outcome is not judged.
    pub(crate) fn new(dir: &Path, name: &str, diff: &str, kernel: &Kernel) -> Result<Self, JobError> {
        let (file, bundle) = (dir.join(format!("{name}.diff")), dir.join(format!("{name}.lpk")));
        std::fs::write(&file, diff)?;
        let outcome = commands::build_bundle(&file, &kernel.vmlinux(), &bundle)?;
        Ok(Self { name: name.to_owned(), bundle, outcome })
    }

    /// Whether a Type 1 bundle with a replaced function was written.
    pub(crate) fn is_type1(&self) -> bool {
        self.outcome.status == 0 && self.outcome.text("/verdict") == "type1" && !self.functions().is_empty()
    }

    /// The same, as an error with everything the command said.
    pub(crate) fn expect_type1(self) -> Result<Self, JobError> {
        if self.is_type1() { Ok(self) } else { Err(failed("lucos-build made no type1 bundle", &self.outcome)) }
    }

    /// Functions of the kernel that it replaces.
    pub(crate) fn functions(&self) -> Vec<Function> {
        let function = |item: &serde_json::Value| {
            Some(Function { name: item["name"].as_str()?.to_owned(), old_address: number(&item["old_address"])? })
        };
        self.outcome.items("/functions").iter().filter_map(function).collect()
    }

    /// Size of the bundle in bytes.
    pub(crate) fn size(&self) -> Result<u64, JobError> {
        Ok(std::fs::metadata(&self.bundle)?.len())
    }
}

/// A number, or an address as hexadecimal text.
fn number(value: &serde_json::Value) -> Option<u64> {
    value.as_u64().or_else(|| u64::from_str_radix(value.as_str()?.trim_start_matches("0x"), 16).ok())
}

/// An outcome that is not the wanted one, as an error.
pub(crate) fn failed(what: &str, outcome: &Outcome) -> JobError {
    JobError::Tool { what: what.to_owned(), status: outcome.status, outcome: outcome.describe() }
}

/// How long threads may stay inside old code of an update of Type 2.
const LEAVE: Duration = Duration::from_secs(60);

/// Applies a bundle and waits until nobody is inside the old code; its pause in microseconds.
pub(crate) fn apply(hv: &Hv, built: &Built) -> Result<f64, JobError> {
    let (outcome, _) = apply_wholly(hv, built)?;
    Ok(outcome.number("/times_us/paused"))
}

/// The same: what `apply` said, and what `show` says when nobody is inside any more.
pub(crate) fn apply_wholly(hv: &Hv, built: &Built) -> Result<(Outcome, Outcome), JobError> {
    let applied = hv.apply(&built.bundle)?;
    let shown = settled(hv, built, &applied)?;
    Ok((applied, shown))
}

/// What `show` says of a bundle that was applied when nobody is inside the old code any more.
pub(crate) fn settled(hv: &Hv, built: &Built, applied: &Outcome) -> Result<Outcome, JobError> {
    let is_in_effect = |outcome: &Outcome| outcome.status == 0 && matches!(outcome.text("/state"), "applied" | "open");
    if !is_in_effect(applied) {
        return Err(failed("apply", applied));
    }
    let start = Instant::now();
    loop {
        let shown = hv.show(&built.name)?;
        if !is_in_effect(&shown) {
            return Err(failed("show after apply", &shown));
        }
        if shown.text("/state") == "applied" {
            return Ok(shown);
        }
        if start.elapsed() > LEAVE {
            return Err(JobError::NotSeen {
                what: format!("{} in the guest", built.name),
                expected: format!("nobody inside old code within {} s", LEAVE.as_secs()),
                seen: shown.describe(),
            });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Existing data that are edited where they are, as the runtime lists them: live address and size.
pub(crate) fn edited_data(shown: &Outcome) -> Vec<(u64, u64)> {
    let edited = shown.items("/data").iter().filter(|item| item["strategy"] == "in-place");
    edited.filter_map(|item| Some((number(&item["old_address"])?, number(&item["old_size"])?))).collect()
}

/// Contents of data, as the guest itself sees them.
pub(crate) fn contents(guest: &mut Guest, data: &[(u64, u64)]) -> Result<Vec<Vec<u8>>, JobError> {
    // More than a page comes slowly through a serial console, and tells nothing more.
    let read = |&(address, size): &(u64, u64)| Ok(guest.kernel_bytes(address, size.min(4096) as usize)?);
    data.iter().map(read).collect()
}

/// Takes a bundle back; its pause in microseconds.
pub(crate) fn undo(hv: &Hv, built: &Built) -> Result<f64, JobError> {
    let outcome = hv.undo(&built.name)?;
    gone(hv, built, &outcome)?;
    Ok(outcome.number("/times_us/paused"))
}

/// Waits until nobody is inside the new code of a bundle that was taken back.
pub(crate) fn gone(hv: &Hv, built: &Built, undone: &Outcome) -> Result<(), JobError> {
    let start = Instant::now();
    let mut now = undone.clone();
    while now.status == 0 && now.text("/state") == "undoing" && start.elapsed() <= LEAVE {
        std::thread::sleep(Duration::from_millis(50));
        now = hv.show(&built.name)?;
    }
    if (now.status, now.text("/state")) == (0, "removed") { Ok(()) } else { Err(failed("undo", &now)) }
}

/// Names of the bundles that `lucos-hv list` calls applied.
pub(crate) fn applied(hv: &Hv) -> Result<Vec<String>, JobError> {
    let outcome = hv.list()?;
    if outcome.status != 0 || !outcome.json.is_array() {
        return Err(failed("list", &outcome));
    }
    let items = outcome.items("").iter().filter(|item| item["state"] == "applied");
    Ok(items.filter_map(|item| Some(item["name"].as_str()?.to_owned())).collect())
}

/// First bytes of the live functions, as the guest itself sees them.
pub(crate) fn entries(guest: &mut Guest, kernel: &Kernel, functions: &[Function]) -> Result<Vec<Vec<u8>>, JobError> {
    let slide = guest.slide(kernel.symbol("_text")?)?;
    functions.iter().map(|function| Ok(guest.kernel_bytes(function.old_address + slide, 14)?)).collect()
}

/// What an entry may begin with: `endbr64`, or what boot writes over it where nothing calls through a pointer (`gen_endbr_poison`,
/// arch/x86/include/asm/ibt.h).
const ENDBR: [&[u8]; 3] = [&[0xf3, 0x0f, 0x1e, 0xfa], &[0x66, 0x0f, 0x1f, 0x00], &[0x0f, 0x1f, 0x40, 0xd6]];

/// Whether an entry leads elsewhere: a jump (Intel SDM vol. 2, JMP rel32: e9), behind `endbr64` and ftrace's no-op if
/// they are there.
pub(crate) fn is_redirected(entry: &[u8]) -> bool {
    let entry = ENDBR.iter().find_map(|endbr| entry.strip_prefix(*endbr)).unwrap_or(entry);
    entry.strip_prefix(&[0x0f, 0x1f, 0x44, 0, 0]).unwrap_or(entry).first() == Some(&0xe9)
}

/// Errors unless what was seen is what was expected.
pub(crate) fn see(what: &str, expected: &str, seen: &str, good: bool) -> Result<(), JobError> {
    if good {
        Ok(())
    } else {
        Err(JobError::NotSeen { what: what.to_owned(), expected: expected.to_owned(), seen: seen.to_owned() })
    }
}
