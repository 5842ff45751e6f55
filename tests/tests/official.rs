//! Official fixes: changes between two releases of the distribution's kernel, as they are.

mod common;

use common::{applied, apply, undo};
use lucos_tests::commands::{self, Hv};
use lucos_tests::guest::{Config, Guest};
use lucos_tests::kernels::Pair;
use lucos_tests::patches::{VISIBLE_FILE, VISIBLE_WORDS};
use lucos_tests::{official, require};

/// How many changes are tried, smallest first.
const TRIED: usize = 24;

#[test]
fn small_official_fixes_go_in_together_and_come_out_again() {
    let Some(older) = require::older_kernel() else { return };
    let Some(newer) = require::newer_kernel() else { return };
    let vmlinux = older.vmlinux();
    let kernel = older.vmlinuz();
    let candidates = official::candidates(&Pair { older, newer }).expect("both trees");
    assert!(candidates.len() >= TRIED, "{} changes between the releases", candidates.len());
    let work = tempfile::tempdir().expect("a folder");
    let mut bundles = Vec::new();
    for candidate in candidates.iter().take(TRIED) {
        let name = candidate.file.trim_end_matches(".c").replace('/', "-");
        let (diff, bundle) = (work.path().join(format!("{name}.diff")), work.path().join(format!("{name}.lpk")));
        std::fs::write(&diff, &candidate.diff).expect("a diff in the work folder");
        let outcome = commands::build_bundle(&diff, &vmlinux, &bundle).expect("lucos-build runs");
        let verdict = outcome.text("/verdict");
        let rules: Vec<&str> = outcome.items("/reasons").iter().filter_map(|reason| reason["rule"].as_str()).collect();
        eprintln!("{}: {verdict} {}", candidate.file, rules.join(" "));
        match (outcome.status, verdict) {
            (0, "type1") => bundles.push((name, bundle)),
            (0, "no-effect") => assert!(!bundle.exists(), "a bundle without effect"),
            (3, "refused" | "type2") => {
                assert!(!rules.is_empty(), "refused without a reason: {}", outcome.describe());
                assert!(!bundle.exists(), "refused, but a bundle was written");
            }
            _ => panic!("{}", outcome.describe()),
        }
    }
    assert!(bundles.len() >= 3, "only {} of {TRIED} official fixes became bundles", bundles.len());

    let mut guest = Guest::under_lucos_hv(&Config::new("official", &kernel)).expect("boots");
    let hv = Hv::new(guest.api());
    let load = guest.start_load(VISIBLE_FILE, &VISIBLE_WORDS).expect("starts");
    let mut expected = Vec::new();
    for (name, bundle) in &bundles {
        apply(&hv, bundle);
        expected.push(name.clone());
        let mut names = applied(&hv);
        names.sort();
        expected.sort();
        assert_eq!(names, expected);
    }
    let before = guest.load_progress(&load).expect("answers");
    std::thread::sleep(std::time::Duration::from_secs(3));
    let after = guest.load_progress(&load).expect("answers");
    assert!(after.fewest > before.fewest, "the guest works with all of them: {before:?} {after:?}");
    for (name, _) in bundles.iter().rev() {
        undo(&hv, name);
    }
    assert!(applied(&hv).is_empty());
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}
