//! What classification takes beside the compiler.
//!
//! Comes in: a kernel; a diff of Type 1 and one of Type 2, made by edits of its source. Decided: whether the limit of
//! SPECIFICATION.md is kept. Goes out: a table: classification (layouts of both objects, what becomes of data, warnings), the
//! compiler's time for the two builds of the unit, and their ratio in each run.

use super::spread;
use crate::JobError;
use crate::live::{Built, failed};
use comfy_table::{Table, presets};
use lucos_tests::kernels::Kernel;
use lucos_tests::patches::{self, Edit};
use serde::Deserialize;
use std::path::Path;

/// How often each is built and counted.
const RUNS: usize = 5;
/// Classification may take this part of the compiler's time.
const MOST_OF_COMPILER: f64 = 0.15;
/// The diff of Type 2: a static counter gets a wider type.
const TYPE_2: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/build/type2-widened-counter/edit.json");

/// What is needed of a case of testdata/build.
#[derive(Deserialize)]
struct Case {
    edits: Vec<Edit>,
}

pub(super) fn run(kernel: &Kernel) -> Result<(), JobError> {
    let work = tempfile::tempdir()?;
    let case: Case = serde_json::from_slice(&std::fs::read(TYPE_2)?).map_err(std::io::Error::from)?;
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["measured", "smallest", "median", "largest", "unit", "times"]);
    let mut most: f64 = 0.0;
    for (verdict, edits) in [("type1", vec![patches::visible()]), ("type2", case.edits)] {
        let diff = patches::diff(&kernel.source(), &edits)?;
        let (classify, compiler) = times(work.path(), verdict, &diff, kernel)?;
        let ratios: Vec<f64> = classify.iter().zip(&compiler).map(|(classify, compiler)| classify / compiler).collect();
        let file = &edits[0].file;
        for (name, values, unit, digits) in [
            (format!("classification, {verdict}, {file}"), &classify, "ms", 0),
            ("compiler, processor time".to_owned(), &compiler, "ms", 0),
            ("classification ÷ compiler".to_owned(), &ratios, "", 3),
        ] {
            let mut row = vec![name];
            row.extend(spread(values).map(|value| format!("{value:.digits$}")));
            row.extend([unit.to_owned(), values.len().to_string()]);
            table.add_row(row);
        }
        let [_, median, _] = spread(&ratios);
        most = most.max(median);
    }
    println!("{}, one file\n{table}", kernel.release);
    if most > MOST_OF_COMPILER {
        return Err(JobError::NotSeen {
            what: "classification ÷ compiler".to_owned(),
            expected: format!("at most {MOST_OF_COMPILER:.4}"),
            seen: format!("{most:.4}"),
        });
    }
    Ok(())
}

/// Milliseconds of classification and of the compiler, in each run but the first, which prepares the build folder.
fn times(dir: &Path, verdict: &str, diff: &str, kernel: &Kernel) -> Result<(Vec<f64>, Vec<f64>), JobError> {
    let (mut classify, mut compiler) = (Vec::new(), Vec::new());
    for run in 0..=RUNS {
        let built = Built::new(dir, verdict, diff, kernel)?;
        let outcome = &built.outcome;
        if outcome.status != 0 || outcome.text("/verdict") != verdict {
            return Err(failed(&format!("lucos-build made no {verdict} bundle"), outcome));
        }
        let number = |name: &str| outcome.number(&format!("/timings_ms/{name}"));
        // A time of 0 is one that was not measured: the ratio would say nothing.
        if number("classify") == 0.0 || number("compiler") == 0.0 {
            return Err(failed("no time of classification or of the compiler", outcome));
        }
        if run > 0 {
            classify.push(number("classify"));
            compiler.push(number("compiler"));
        }
    }
    Ok((classify, compiler))
}
