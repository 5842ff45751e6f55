//! `cargo xtask bench`: the numbers of SPECIFICATION.md, measured on this machine.
//!
//! Comes in: how often to apply. Decided: nothing. Goes out: `lucos-build` wall time against the compiler time it needs,
//! their ratio, the pause of an apply and of an undo (smallest, middle, largest), the size of the bundle; then
//! [`classification`] and [`layouts`].

mod classification;
mod layouts;

use crate::live::{Built, apply, undo};
use crate::{JobError, cargo, say};
use comfy_table::{Table, presets};
use lucos_tests::commands::Hv;
use lucos_tests::guest::{Config, Guest};
use lucos_tests::patches::{self, VISIBLE_FILE, VISIBLE_WORDS};
use lucos_tests::setup;

/// How often the same bundle is built.
const BUILDS: usize = 5;

pub(crate) fn run(applies: u32, only_layouts: bool) -> Result<(), JobError> {
    let pair = setup::prepare(&say)?;
    cargo::build()?;
    if only_layouts {
        return layouts::run(&pair);
    }
    let kernel = &pair.older;
    let work = tempfile::tempdir()?;
    let diff = patches::diff(&kernel.source(), &[patches::visible()])?;
    // The first build prepares the kernel's build folder, which is kept; it is not measured.
    let mut built = Built::new(work.path(), "proc-version", &diff, kernel)?.expect_type1()?;
    let (mut wall, mut compiler) = (Vec::new(), Vec::new());
    for _ in 0..BUILDS {
        built = Built::new(work.path(), "proc-version", &diff, kernel)?.expect_type1()?;
        wall.push(built.outcome.wall_ms as f64);
        compiler.push(built.outcome.number("/timings_ms/compiler"));
    }

    let mut guest = Guest::under_lucos_hv(&Config::new("bench", &kernel.vmlinuz()))?;
    let hv = Hv::new(guest.api());
    guest.start_load(VISIBLE_FILE, &VISIBLE_WORDS)?;
    let (mut applied, mut undone) = (Vec::new(), Vec::new());
    for _ in 0..applies {
        applied.push(apply(&hv, &built)?);
        undone.push(undo(&hv, &built)?);
    }
    guest.power_off()?;

    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["measured", "smallest", "median", "largest", "unit", "times"]);
    let ratio: Vec<f64> = wall.iter().zip(&compiler).map(|(wall, compiler)| wall / compiler.max(1.0)).collect();
    for (name, values, unit, digits) in [
        ("lucos-build, wall", &wall, "ms", 0),
        ("compiler in it, processor time", &compiler, "ms", 0),
        ("wall ÷ compiler", &ratio, "", 2),
        ("pause of apply", &applied, "µs", 0),
        ("pause of undo", &undone, "µs", 0),
    ] {
        let mut row = vec![name.to_owned()];
        row.extend(spread(values).map(|value| format!("{value:.digits$}")));
        row.extend([unit.to_owned(), values.len().to_string()]);
        table.add_row(row);
    }
    let size = built.size()?.to_string();
    table.add_row(["bundle", &size, &size, &size, "bytes", "1"]);
    println!("{}, fs/proc/version.c, 2 processors under load, software emulation\n{table}", kernel.release);
    // Both are shown, also when the first is over its limit.
    let classified = classification::run(kernel);
    layouts::run(&pair)?;
    classified
}

/// Smallest, middle and largest; zeros for no value.
fn spread(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
    [at(0), at(sorted.len() / 2), at(sorted.len().saturating_sub(1))]
}

#[cfg(test)]
mod tests {
    #[test]
    fn spread_is_smallest_middle_largest() {
        assert_eq!(super::spread(&[3.0, 1.0, 2.0]), [1.0, 2.0, 3.0]);
        assert_eq!(super::spread(&[]), [0.0; 3]);
    }
}
