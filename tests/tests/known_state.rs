//! Updates of a module whose state is known: whatever comes and goes, every number in it is right.

use lucos_tests::require;
use lucos_tests::soak::{self, Until};

/// Steps of each run here; `cargo xtask soak` takes as many as it is asked for.
const STEPS: usize = 60;
const SEED: u64 = 20_061_126;

fn nothing_is_lost(cpus: u32) {
    let Some((kernel, known)) = require::known_state() else { return };
    let say = |line: &str| eprintln!("{line}");
    let summary = soak::run(&kernel, &known, cpus, SEED + u64::from(cpus), Until::Steps(STEPS), &say);
    eprintln!("{}", summary.unwrap_or_else(|error| panic!("{error}")));
}

#[test]
fn nothing_is_lost_on_two_processors() {
    nothing_is_lost(2);
}

#[test]
fn nothing_is_lost_on_four_processors() {
    nothing_is_lost(4);
}
