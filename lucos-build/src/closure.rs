//! Units that are compiled although the diff does not touch them: functions in them use a datum that moves.
//!
//! Comes in: the data that move, and the image's references to them. Decided: which units have these references, if all of
//! them are in functions that can be compiled; what else there is refuses the move (`prelink/src/link/data.rs`). Goes out:
//! the units, and the names of all functions that use a datum.

use prelink::units::UnitIndex;
use prelink::users::{self, By};
use prelink::vmlinux::KernelImage;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;

/// Who uses a datum.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// Names of the functions.
    pub functions: BTreeSet<String>,
    /// Their units; none when somebody uses it who cannot be replaced.
    pub units: BTreeSet<PathBuf>,
}

/// Finds the users of what lies in a range of the kernel's image.
pub fn users(image: &KernelImage, units: &UnitIndex<'_>, range: &Range<u64>) -> Users {
    let mut found = Users::default();
    let mut all = true;
    for user in users::of(image, range).into_iter().filter(|user| !range.contains(&user.field)) {
        let By::Function(name) = user.by else {
            all = false;
            continue;
        };
        found.functions.insert(name.to_owned());
        match units.at(user.field).map(|unit| PathBuf::from(&unit.name)) {
            Some(unit) if unit.extension().is_some_and(|extension| extension == "c") => drop(found.units.insert(unit)),
            _ => all = false,
        }
    }
    if !all {
        found.units.clear();
    }
    found
}
