//! Answers for people and programs.
//!
//! Comes in: an answer of the service, or a problem. Decided: nothing. Goes out: a table, lines or JSON, on standard output; problems for
//! people on standard error.

use comfy_table::{Table, presets::UTF8_BORDERS_ONLY};
use runtime_hv::engine::kvm::Costs;
use runtime_hv::protocol::{BundleInfo, DataInfo, DataStrategy, HookInfo, ObjectsCount, ObjectsInfo, Problem, Reply};
use serde::Serialize;

/// Prints why something was not done: on standard error, or as JSON on standard output.
pub(crate) fn problem(problem: &Problem, json: bool) {
    if json {
        let wrapped = serde_json::json!({ "error": problem });
        println!("{wrapped}");
        return;
    }
    let code = if problem.status == 3 { format!("refused: {}", problem.reason) } else { problem.reason.clone() };
    let mut report = miette::MietteDiagnostic::new(problem.message.clone()).with_code(code);
    if let Some(help) = &problem.help {
        report = report.with_help(help);
    }
    eprintln!("{:?}", miette::Report::new(report));
}

/// Prints that KVM works, and what its operations cost.
pub(crate) fn probed(costs: Option<&Costs>, json: bool) {
    if json {
        println!("{}", serde_json::json!({ "engine": "kvm", "works": true, "costs": costs }));
        return;
    }
    println!("the engine kvm works on this host");
    let Some(costs) = costs else { return };
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(["operation", "time", "of an empty exit"]);
    for (name, time_ns) in [
        ("empty exit", costs.empty_exit_ns),
        ("pause", costs.pause_ns),
        ("call", costs.call_ns),
        ("report", costs.report_ns),
        ("trapped write", costs.trap_ns),
        ("protect again", costs.protect_again_ns),
    ] {
        let ratio = time_ns as f64 / costs.empty_exit_ns.max(1) as f64;
        table.add_row([name.to_owned(), format!("{:.1} µs", time_ns as f64 / 1000.0), format!("{ratio:.1}")]);
    }
    println!("{table}");
}

/// Prints an answer.
///
/// # Errors
/// [`Problem`] when it cannot be written as JSON.
pub(crate) fn reply(reply: &Reply, json: bool) -> Result<(), Problem> {
    match reply {
        Reply::Bundles(bundles) if json => print_json(bundles),
        Reply::Bundle(bundle) if json => print_json(bundle),
        Reply::Status(status) if json => print_json(status),
        Reply::Bundles(bundles) => {
            list(bundles);
            Ok(())
        }
        Reply::Bundle(bundle) => {
            one(bundle);
            Ok(())
        }
        Reply::Status(status) => {
            let running = if status.paused { "stopped by its owner" } else { "running" };
            println!(
                "lucos-hv {}, engine {}, guest {running}, {} bundles applied",
                status.version, status.engine, status.applied
            );
            if status.waiting {
                println!("the guest was asked something and has not answered yet");
            }
            if status.lost_pages != 0 {
                println!(
                    "{} pages of guest memory are lost: somebody seemed to be inside when they were due",
                    status.lost_pages
                );
            }
            Ok(())
        }
    }
}

fn print_json(value: &impl Serialize) -> Result<(), Problem> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Problem::failed("json", error))?;
    println!("{text}");
    Ok(())
}

fn list(bundles: &[BundleInfo]) {
    if bundles.is_empty() {
        println!("no bundles");
        return;
    }
    let mut table =
        table(&["name", "id", "state", "lives in", "functions", "applied at", "total", "paused", "kept pages"]);
    for info in bundles {
        table.add_row([
            info.name.clone(),
            info.id.get(..12).unwrap_or(&info.id).to_owned(),
            state(info),
            home(info),
            functions(info).to_string(),
            info.applied_at.clone(),
            time(info, "total"),
            time(info, "paused"),
            info.kept_pages.to_string(),
        ]);
    }
    println!("{table}");
}

fn one(info: &BundleInfo) {
    println!("{} ({}): {}", info.name, info.id, state(info));
    println!("kernel {}, slide {}, applied at {}", info.release, info.slide, info.applied_at);
    match &info.module {
        Some(name) => println!("the guest lists its code as module {name}"),
        None => println!("its code is in the arena; the guest does not list it"),
    }
    let mut functions = table(&["function", "unit", "old", "new", "size"]);
    for function in &info.functions {
        functions.add_row([
            &function.name,
            &function.unit,
            &function.old_address,
            &function.new_address,
            &function.size.to_string(),
        ]);
    }
    if !info.functions.is_empty() {
        println!("{functions}");
    }
    data(&info.data);
    objects(&info.objects);
    if let Some(open) = &info.open {
        println!(
            "open for {:.1} s: {} of {} frames left, {} writes carried to the new copies and {} to the old ones, {} to something else, {} late, {} lost",
            open.ms as f64 / 1000.0,
            open.left,
            open.frames,
            open.to_new,
            open.to_old,
            open.false_sharing,
            open.late,
            open.lost
        );
        open.trouble.iter().for_each(|trouble| println!("last trouble: {trouble}"));
    }
    if info.stay {
        println!("kernel threads that sleep in old code are left there, as --stay asked");
    }
    let mut threads = table(&["thread", "name", "inside", "at", "not moved, because"]);
    for thread in &info.inside {
        let why = thread.why.as_deref().unwrap_or("-");
        threads.add_row([&thread.pid.to_string(), &thread.name, &thread.function, &thread.at, why]);
    }
    if !info.inside.is_empty() {
        println!("{threads}");
    }
    moved(info);
    hooks(&info.hooks);
    for module in &info.modules {
        let word = module.state.word();
        let state = module.reason.as_ref().map_or_else(|| word.to_owned(), |reason| format!("{word} ({reason})"));
        let known_as = module.module.as_ref().map(|name| format!(", new code in module {name}")).unwrap_or_default();
        println!("module {}: {state}{known_as}", module.name);
        let mut functions = table(&["function", "unit", "old", "new", "size"]);
        let address = |address: &Option<String>| address.clone().unwrap_or_else(|| "-".to_owned());
        for function in &module.functions {
            functions.add_row([
                function.name.clone(),
                function.unit.clone(),
                address(&function.old_address),
                address(&function.new_address),
                function.size.to_string(),
            ]);
        }
        println!("{functions}");
        data(&module.data);
        objects(&module.objects);
        hooks(&module.hooks);
    }
    let phases: Vec<String> = info.times_us.keys().map(|phase| format!("{phase} {}", time(info, phase))).collect();
    println!("last action: {}", phases.join(", "));
    if info.kept_pages != 0 {
        println!("{} pages of guest memory are kept: something may still refer to them", info.kept_pages);
    }
}

/// Kernel threads that have gone on in the other version.
fn moved(info: &BundleInfo) {
    let version = if info.state.is_in_effect() { "new" } else { "old" };
    let mut rows = table(&["thread", "name", &format!("goes on in the {version}")]);
    for thread in &info.moved {
        rows.add_row([&thread.pid.to_string(), &thread.name, &thread.function]);
    }
    if !info.moved.is_empty() {
        println!("{rows}");
    }
}

/// Existing data that change.
fn data(data: &[DataInfo]) {
    let mut rows = table(&["datum", "unit", "what", "old", "new", "size"]);
    let address = |address: &Option<String>| address.clone().unwrap_or_else(|| "-".to_owned());
    for datum in data {
        let (what, new) = match datum.strategy {
            DataStrategy::InPlace => ("in place", "-".to_owned()),
            DataStrategy::Moved => ("moved", address(&datum.new_address)),
        };
        let size = format!("{} -> {}", datum.old_size, datum.new_size);
        rows.add_row([&datum.name, &datum.unit, what, &address(&datum.old_address), &new, &size]);
    }
    if !data.is_empty() {
        println!("{rows}");
    }
}

/// Objects on the heap that have got something new.
fn objects(objects: &[ObjectsInfo]) {
    let mut rows = table(&["objects of", "cache", "size", "new bytes", "live", "free", "of", "slabs"]);
    for one in objects {
        let added: Vec<String> = one.added.iter().map(|[at, length]| format!("{length} at {at}")).collect();
        let count =
            |of: &dyn Fn(ObjectsCount) -> u64| one.count.map_or_else(|| "-".to_owned(), |count| of(count).to_string());
        rows.add_row([
            one.type_name.clone(),
            one.cache.clone().unwrap_or_else(|| one.variable.clone()),
            format!("{} -> {}", one.old_size, one.new_size),
            added.join(", "),
            count(&|count| count.live),
            count(&|count| count.free),
            count(&|count| count.of),
            count(&|count| count.slabs),
        ]);
    }
    if !objects.is_empty() {
        println!("{rows}");
    }
}

/// The author's functions.
fn hooks(hooks: &[HookInfo]) {
    for hook in hooks {
        println!("hook {}: {}", hook.kind.name(), hook.subject.as_deref().unwrap_or("the update"));
    }
}

fn home(info: &BundleInfo) -> String {
    info.module.clone().unwrap_or_else(|| info.memory.word().to_owned())
}

/// Functions of the image and of modules.
fn functions(info: &BundleInfo) -> usize {
    info.functions.len() + info.modules.iter().map(|module| module.functions.len()).sum::<usize>()
}

fn state(info: &BundleInfo) -> String {
    let word = info.state.word();
    let mut state = info.reason.as_ref().map_or_else(|| word.to_owned(), |reason| format!("{word} ({reason})"));
    // What is not like the whole.
    if !info.inside.is_empty() {
        state.push_str(&format!(", {} inside", info.inside.len()));
    }
    for module in info.modules.iter().filter(|module| module.state.word() != word) {
        state.push_str(&format!(", {}: {}", module.name, module.state.word()));
    }
    state
}

fn time(info: &BundleInfo, phase: &str) -> String {
    info.times_us.get(phase).map_or_else(|| "-".to_owned(), |us| format!("{:.1} ms", *us as f64 / 1000.0))
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(header);
    table
}
