//! `cargo xtask corpus`: every official change between two releases, as diffs of their own.
//!
//! Comes in: two versions. Decided: nothing about the verdicts, they are `lucos-build`'s. Goes out: a table by rule, the
//! share of files that can be updated, JSON; for a sample, whether the bundle does its work on the running kernel.
//! Diffs, reports and bundles stay in `target/corpus/FROM-TO/FILE/`.
//!
//! The phases: [`checker`] (the kernel's own compiler), [`plan`] and [`hunks`] (what a diff takes), [`assemble`] (the
//! smallest diff that compiles, from [`complaints`]), [`evaluate`] and [`extend`] (`lucos-build`, one [`entry`] per file),
//! [`guest`] (live), [`summary`].

mod assemble;
mod checker;
mod complaints;
pub(crate) mod entry;
pub(crate) mod evaluate;
mod extend;
mod guest;
mod hunks;
mod plan;
mod summary;

use crate::{JobError, cargo, root, say};
use assemble::Workbench;
use checker::Checker;
use entry::{Entry, Place};
use evaluate::Evaluator;
use lucos_tests::official::{self, BuiltIn, Change};
use lucos_tests::{commands, setup};
use plan::Trees;
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What can be asked for.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CorpusArgs {
    /// Series of the kernel, such as 6.12 [default: that of the distribution's kernel]
    #[arg(long)]
    series: Option<String>,
    /// The older version, such as 6.1.190 or 6.1.190-1 [default: the newest before --to]
    #[arg(long, value_name = "VERSION")]
    from: Option<String>,
    /// The newer version [default: the newest in the archive]
    #[arg(long, value_name = "VERSION")]
    to: Option<String>,
    /// Only these files, or files below these folders
    #[arg(long, value_name = "PATH", num_args = 1..)]
    only: Vec<String>,
    /// Only files that an earlier run ended with this verdict, or with this rule among the reasons, such as `type-layout`
    #[arg(long, value_name = "WORD", num_args = 1..)]
    ended: Vec<String>,
    /// Only a random sample of so many built-in files
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// Also so many files of modules, at random
    #[arg(long, value_name = "N", default_value_t = 24)]
    modules: usize,
    /// Files at a time
    #[arg(short, long, value_name = "N", default_value_t = 2)]
    jobs: usize,
    /// Time for each build, in minutes; what takes longer counts as undecided
    #[arg(long, value_name = "MINUTES", default_value_t = 30)]
    limit: u64,
    /// Apply and undo so many of the bundles of each type, at random, on the running kernel
    #[arg(long, value_name = "N", default_value_t = 0)]
    live: usize,
    /// Seed of the samples [default: another one every time; it is printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Write everything as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Build all files again
    #[arg(long)]
    fresh: bool,
}

impl CorpusArgs {
    /// The small sample of `cargo xtask ci`.
    pub(crate) fn small() -> Self {
        Self {
            series: None,
            from: None,
            to: None,
            only: Vec::new(),
            ended: Vec::new(),
            sample: Some(16),
            modules: 2,
            jobs: 2,
            limit: 30,
            live: 4,
            seed: Some(1),
            json: None,
            fresh: false,
        }
    }
}

/// Two releases, what differs between them, and where results are kept.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) step: setup::Step,
    pub(crate) trees: Trees,
    pub(crate) built_in: BuiltIn,
    checker: Checker,
    /// Folder of the diffs, reports and bundles.
    pub(crate) folder: PathBuf,
}

impl Ground {
    /// Fetches what is wanted, builds the programs and compares the releases.
    pub(crate) fn open(wanted: &setup::Wanted) -> Result<Self, JobError> {
        let step = setup::step(wanted, &say)?;
        // Whoever has built the programs says where they are.
        if std::env::var_os("LUCOS_BIN_DIR").is_none() {
            cargo::build()?;
        }
        let kernel = &step.older;
        let changed = official::changed(&kernel.source(), &step.newer_source)?;
        let trees = Trees::new(kernel.source(), step.newer_source.clone(), changed);
        let built_in = BuiltIn::of(&kernel.vmlinux(), &kernel.source())?;
        let checker = Checker::open(kernel)?;
        let folder = root().join("target/corpus").join(format!("{}-{}", kernel.version, step.newer_version));
        std::fs::create_dir_all(&folder)?;
        Ok(Self { step, trees, built_in, checker, folder })
    }

    fn workbench(&self) -> Workbench<'_> {
        Workbench { trees: &self.trees, checker: &self.checker, built_in: &self.built_in }
    }

    /// What makes bundles of changed files, each within a limit of time.
    pub(crate) fn evaluator(&self, limit: Duration, fresh: bool) -> Result<Evaluator<'_>, JobError> {
        Ok(Evaluator {
            workbench: self.workbench(),
            vmlinux: self.step.older.vmlinux(),
            folder: &self.folder,
            tool: evaluate::program_digest(&commands::program("lucos-build")?)?,
            limit,
            fresh,
            built: Mutex::default(),
        })
    }
}

/// Runs it; gives the share of files that can be updated, in per cent.
pub(crate) fn run(args: &CorpusArgs) -> Result<f64, JobError> {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000_000));
    let mut random = fastrand::Rng::with_seed(seed);
    say(&format!("seed of the samples: {seed}"));
    let wanted = setup::Wanted { series: args.series.clone(), from: args.from.clone(), to: args.to.clone() };
    let ground = Ground::open(&wanted)?;
    let Ground { step, folder, .. } = &ground;
    let kernel = &step.older;
    let files = choose(args, &ground.workbench(), folder, &mut random);
    let evaluator = ground.evaluator(Duration::from_secs(60 * args.limit), args.fresh)?;
    let entries = evaluate_all(&evaluator, &files, args.jobs)?;

    let mut seen = BTreeSet::new();
    let mut bundles = Vec::new();
    for verdict in ["type1", "type2"] {
        let mut of_type: Vec<&Entry> = entries.iter().filter(|entry| entry.verdict == verdict).collect();
        of_type.retain(|entry| seen.insert(&entry.diff));
        random.shuffle(&mut of_type);
        bundles.extend(of_type.into_iter().take(args.live));
    }
    let live = if bundles.is_empty() { Vec::new() } else { guest::run(folder, kernel, &bundles)? };

    let versions = [kernel.version.as_str(), step.newer_version.as_str(), kernel.release.as_str()];
    let corpus = summary::Corpus::new(versions, seed, &evaluator.tool, &entries, &live);
    let json = serde_json::to_vec_pretty(&corpus).map_err(std::io::Error::from)?;
    std::fs::write(folder.join("corpus.json"), &json)?;
    std::fs::write(folder.join("summary.txt"), corpus.to_text() + &corpus.listing())?;
    if let Some(file) = &args.json {
        std::fs::write(file, &json)?;
    }
    println!("\n{}", corpus.to_text());
    say(&format!("every file with its reason: {}", folder.join("summary.txt").display()));
    if let Some(entry) = entries.iter().find(|entry| entry.verdict == "failed") {
        return Err(JobError::Corpus(format!("{}: {}", entry.file, entry.reasons[0].message)));
    }
    match live.iter().find(|tried| tried.verdict == "harmed") {
        Some(tried) => Err(JobError::NotSeen {
            what: format!("a bundle of {} on the running kernel", tried.file),
            expected: "applied and undone without harm".to_owned(),
            seen: tried.message.clone(),
        }),
        None => Ok(corpus.share_per_cent),
    }
}

/// The files to look at: those built in, and some of modules.
fn choose(
    args: &CorpusArgs,
    workbench: &Workbench<'_>,
    folder: &Path,
    random: &mut fastrand::Rng,
) -> Vec<(String, Place)> {
    let is_wanted = |file: &str| {
        let below = |path: &String| file == path || file.starts_with(&format!("{}/", path.trim_end_matches('/')));
        let ended = || {
            let earlier = evaluate::earlier(folder, file);
            earlier.is_some_and(|entry| args.ended.iter().any(|word| entry.ended(word)))
        };
        (args.only.is_empty() || args.only.iter().any(below)) && (args.ended.is_empty() || ended())
    };
    let sources = workbench.trees.ending(&[".c"]).filter(|(file, change)| *change != Change::New && is_wanted(file));
    let (mut inside, mut outside): (Vec<String>, Vec<String>) =
        sources.map(|(file, _)| file.to_owned()).partition(|file| !workbench.built_in.units_of(file).is_empty());
    say(&format!("{} files differ, {} .c files of them are built in", workbench.trees.changed.len(), inside.len()));
    if let Some(count) = args.sample {
        random.shuffle(&mut inside);
        inside.truncate(count);
        inside.sort();
    }
    workbench.checker.learn(&inside.iter().flat_map(|file| workbench.built_in.units_of(file)).collect::<Vec<_>>());
    let mut files: Vec<(String, Place)> = inside.into_iter().map(|file| (file, Place::BuiltIn)).collect();
    random.shuffle(&mut outside);
    let mut modules = Vec::new();
    for part in outside.chunks(40) {
        if modules.len() >= args.modules {
            break;
        }
        workbench.checker.learn(part);
        let is_module = |file: &&String| workbench.checker.commands(file).is_ok_and(|commands| commands.is_module());
        modules.extend(part.iter().filter(is_module).cloned());
    }
    modules.truncate(args.modules);
    modules.sort();
    files.extend(modules.into_iter().map(|file| (file, Place::Module)));
    files
}

fn evaluate_all(evaluator: &Evaluator<'_>, files: &[(String, Place)], jobs: usize) -> Result<Vec<Entry>, JobError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(jobs)
        .build()
        .map_err(|source| JobError::Threads { jobs, source })?;
    let done = AtomicUsize::new(0);
    let one = |(file, place): &(String, Place)| {
        let entry = evaluator.run(file, *place);
        let number = done.fetch_add(1, Ordering::Relaxed) + 1;
        let rule = if entry.verdict == "failed" { &entry.reasons[0].message } else { entry.rule() };
        say(&format!("{number}/{} {file}: {} {rule}", files.len(), entry.verdict));
        entry
    };
    Ok(pool.install(|| files.par_iter().map(one).collect()))
}
