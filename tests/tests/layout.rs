//! Layouts of whole kernels, checked against an independent reader of the same debug information.

use lucos_tests::commands::{self, Outcome};
use lucos_tests::kernels::Kernel;
use lucos_tests::pahole::{self, Dump, Layout};
use lucos_tests::require;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(300);

fn layout(args: &[&str]) -> Outcome {
    let program = commands::program("lucos-build").expect("built before the tests");
    let args: Vec<&str> = ["layout"].iter().chain(args).copied().collect();
    commands::run(&program, &args, LIMIT).expect("lucos-build runs")
}

/// A release with its debug part.
fn image(kernel: &Kernel) -> Option<PathBuf> {
    let missing = || format!("{} has no vmlinux; `cargo xtask setup` fetches it", kernel.dir.display());
    require::or_skip(kernel.vmlinux().exists().then(|| kernel.vmlinux()).ok_or_else(missing))
}

fn pahole_dump(image: &std::path::Path) -> Option<Dump> {
    require::or_skip(pahole::dump(image).map_err(|error| format!("pahole (package dwarves): {error}")))
}

fn agree(ours: &Layout, theirs: &Layout) -> bool {
    theirs.size.is_none_or(|size| ours.size == Some(size)) && ours.fields == theirs.fields
}

fn first_difference(ours: &[Layout], theirs: &Layout) -> String {
    let Some(ours) = ours.first() else { return "we have none".to_owned() };
    if theirs.size.is_some() && ours.size != theirs.size {
        return format!("size {:?}, pahole says {:?}", ours.size, theirs.size);
    }
    let mut pairs = ours.fields.iter().zip(&theirs.fields);
    match pairs.find(|(ours, theirs)| ours != theirs) {
        Some((ours, theirs)) => format!("{ours:?}, pahole says {theirs:?}"),
        None => format!("{} members, pahole says {}", ours.fields.len(), theirs.fields.len()),
    }
}

#[test]
fn every_struct_and_union_is_as_pahole_has_it() {
    let Some(kernel) = require::older_kernel() else { return };
    let Some(image) = image(&kernel) else { return };
    let Some(theirs) = pahole_dump(&image) else { return };
    let outcome = layout(&[&image.display().to_string(), "--json"]);
    assert_eq!(outcome.status, 0, "{}", outcome.stderr);
    let ours = pahole::of_report(&outcome.json);
    let (mut agreed, mut unprinted, mut failures) = (0, Vec::new(), Vec::new());
    for (name, layouts) in &theirs {
        let candidates = ours.get(name).map(Vec::as_slice).unwrap_or_default();
        for layout in layouts {
            if candidates.iter().any(|ours| agree(ours, layout)) {
                agreed += 1;
            } else {
                failures.push(format!("{name}: {}", first_difference(candidates, layout)));
            }
        }
    }
    for (name, layouts) in &ours {
        let theirs = theirs.get(name).map(Vec::as_slice).unwrap_or_default();
        for ours in layouts.iter().filter(|ours| !theirs.iter().any(|theirs| agree(ours, theirs))) {
            // Of several types of one name pahole prints those that it takes to be different.
            if theirs.is_empty() {
                failures.push(format!("{name}: {:?} bytes, pahole has none", ours.size));
            } else {
                unprinted.push(name.as_str());
            }
        }
    }
    eprintln!("{agreed} structs and unions agree; of types that share their name pahole leaves out {unprinted:?}");
    assert!(failures.is_empty(), "{} disagree:\n{}", failures.len(), failures[..failures.len().min(20)].join("\n"));
    assert!(agreed > 5000, "only {agreed} were compared");
    assert!(unprinted.len() < 20, "pahole leaves out {}", unprinted.len());
}

#[test]
fn two_releases_differ_where_two_dumps_of_pahole_do() {
    let Some(older) = require::older_kernel() else { return };
    let Some(newer) = require::newer_kernel() else { return };
    let (Some(old), Some(new)) = (image(&older), image(&newer)) else { return };
    let (Some(old_dump), Some(new_dump)) = (pahole_dump(&old), pahole_dump(&new)) else { return };
    let outcome = layout(&[&old.display().to_string(), &new.display().to_string(), "--json"]);
    assert_eq!(outcome.status, 4, "{}", outcome.stderr);
    let sorted = |layouts: &[Layout]| -> BTreeSet<Layout> {
        let by_field = |layout: &Layout| {
            let mut layout = layout.clone();
            layout.fields.sort();
            layout
        };
        layouts.iter().map(by_field).collect()
    };
    let theirs: BTreeSet<&str> = old_dump
        .iter()
        .filter(|(name, layouts)| new_dump.get(*name).is_some_and(|new| sorted(new) != sorted(layouts)))
        .map(|(name, _)| name.as_str())
        .collect();
    let ours: BTreeSet<&str> = outcome
        .items("/types")
        .iter()
        .filter(|change| {
            let resized = change["old_size"] != change["new_size"];
            let fields = change["members"].as_array().into_iter().flatten();
            let place = |side: &serde_json::Value| (side["bit_offset"].clone(), side["bit_size"].clone());
            let mut moved = fields
                .filter(|member| !member["renamed_to"].is_null() || place(&member["old"]) != place(&member["new"]));
            resized || moved.next().is_some()
        })
        .filter_map(|change| change["name"].as_str()?.split(" in ").next())
        .filter(|name| name.starts_with("struct ") || name.starts_with("union "))
        .collect();
    eprintln!("{} structs and unions differ", ours.len());
    assert_eq!(ours, theirs);
    assert!(!ours.is_empty());
}
