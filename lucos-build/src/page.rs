//! The report as a page for a browser: one file that needs no other, and no network.
//!
//! Comes in: the report with its details. Decided: order and form. Goes out: HTML. Names, paths and messages come from the diff
//! and may be anything: maud escapes them, characters that would hide or reorder text are spelled out, and the page's own
//! policy lets nothing run but its one small script. The page also works without that. Nothing in it depends on time or place:
//! the same inputs give the same bytes.

mod bytes;
mod data;
mod functions;
mod symbols;
mod text;
mod types;

use crate::catalog;
use crate::report::{Report, Verdict};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::path::Path;
use text::{counted, prose, rule_id, rule_link};

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");

/// A part of the page: anchor, heading, how many things are in it, contents.
struct Section {
    id: &'static str,
    title: &'static str,
    count: usize,
    body: Markup,
}

/// The page.
pub fn render(report: &Report) -> String {
    let sections = sections(report);
    let title = format!("{}: {}", name(report), verdict(report).1);
    let policy = format!(
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        STANDARD.encode(Sha256::digest(SCRIPT))
    );
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#main" { "Skip to the report" }
                header { (head(report)) }
                nav aria-label="Parts of the report" {
                    ul {
                        @for Section { id, title, count, .. } in &sections {
                            li { a href={ "#" (id) } { (title) @if *count > 0 { " " span.count { (count) } } } }
                        }
                    }
                }
                main id="main" {
                    @for Section { id, title, count, body } in &sections {
                        section id=(id) aria-labelledby={ (id) "-title" } {
                            h2 id={ (id) "-title" } { (title) @if *count > 0 { " " span.count { (count) } } }
                            (body)
                        }
                    }
                }
                footer { "lucos-build " (env!("CARGO_PKG_VERSION")) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    spell_out(&page.into_string())
}

/// Characters that would hide text or show it in another order than it has, spelled out.
fn spell_out(page: &str) -> String {
    let mut shown = String::with_capacity(page.len());
    for character in page.chars() {
        let reorders = matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
        if reorders || (character.is_control() && !matches!(character, '\n' | '\t')) {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Name of the update.
fn name(report: &Report) -> String {
    let file = report.inputs.update.as_ref().or(report.inputs.diff.as_ref());
    match file.and_then(|file| file.path.file_name()) {
        Some(name) if name != "-" => name.to_string_lossy().into_owned(),
        _ => "Update".to_owned(),
    }
}

/// A sign, a word and a sentence; colour says the same.
fn verdict(report: &Report) -> (&'static str, &'static str, &'static str, &'static str) {
    let refused = report.bundle.is_none();
    match report.verdict {
        Verdict::Type1 => ("ok", "Type 1", "✓", "Functions change, existing data does not. A bundle was written."),
        Verdict::Type2 if refused => (
            "refused",
            "Type 2, refused",
            "✕",
            "Existing types or data change in a way that nothing follows. No bundle was written.",
        ),
        Verdict::Type2 => {
            ("care", "Type 2", "!", "Functions and existing data change, or hooks run. A bundle was written.")
        }
        Verdict::Refused => {
            ("refused", "Refused", "✕", "It cannot be done, for the reasons below. No bundle was written.")
        }
        Verdict::NoEffect => ("ok", "No effect", "–", "Nothing that runs in this kernel changes. No bundle is needed."),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn head(report: &Report) -> Markup {
    let (class, word, sign, sentence) = verdict(report);
    let inputs = &report.inputs;
    let numbers = [
        (report.reasons.len(), "reason", "reasons"),
        (report.warnings.len(), "warning", "warnings"),
        (report.types.len(), "changed type", "changed types"),
        (report.data_changes.len(), "changed datum", "changed data"),
        (functions(report), "function", "functions"),
        (report.data.len(), "new datum", "new data"),
    ];
    html! {
        p.eyebrow { "Live update of a kernel" }
        h1 { (name(report)) }
        p class={ "verdict " (class) } { span.sign aria-hidden="true" { (sign) } strong { (word) } span { (sentence) } }
        dl.facts {
            @if let Some(release) = &inputs.release { div { dt { "Kernel" } dd { code { (release) } } } }
            @if let Some(id) = &inputs.build_id { div { dt { "Build id" } dd { code.long { (id) } } } }
            @if let Some(version) = &inputs.compiler_version { div { dt { "Compiler" } dd { (version) } } }
            @if let Some(bundle) = &report.bundle { div { dt { "Bundle" } dd { code { (file_name(bundle)) } } } }
            @if let Some(file) = &inputs.overrides { div { dt { "The author's word" } dd { code { (file_name(&file.path)) } } } }
            @if let Some(file) = &inputs.hooks { div { dt { "Hooks" } dd { code { (file_name(&file.path)) } } } }
        }
        ul.numbers {
            @for (count, one, many) in numbers.iter().filter(|(count, ..)| *count > 0) { li { strong { (count) } " " (if *count == 1 { one } else { many }) } }
        }
        (files(report))
    }
}

/// Functions of the update; of a refused one those that change.
fn functions(report: &Report) -> usize {
    let detailed = report.details.as_ref().map_or(0, |details| details.functions.len());
    detailed.max(report.functions.len())
}

fn files(report: &Report) -> Markup {
    let Some(details) = report.details.as_ref().filter(|details| !details.files.is_empty()) else { return html! {} };
    html! {
        details.files open[details.files.len() <= 8] {
            summary { (counted(details.files.len(), "file", "files")) " of the diff" }
            ul {
                @for file in &details.files {
                    li {
                        code { (file.path) }
                        @if let Some(what) = &file.what { " (" (what) ")" }
                        " " span.plus { "+" (file.added) } " " span.minus { "−" (file.removed) }
                    }
                }
            }
        }
    }
}

/// The parts that there is something to say in.
fn sections(report: &Report) -> Vec<Section> {
    let mut used = BTreeSet::new();
    let mut sections = Vec::new();
    let mut add = |id, title, count, body| {
        if count > 0 {
            sections.push(Section { id, title, count, body });
        }
    };
    add("reasons", "Why it is refused", report.reasons.len(), text::reasons(report, &report.reasons, "reason"));
    let warnings: Vec<_> = report.warnings.iter().map(|warning| warning.reason.clone()).collect();
    add("warnings", "Warnings", warnings.len(), text::reasons(report, &warnings, "warning"));
    add("omitted", "Left out of the bundle", report.omitted.len(), text::reasons(report, &report.omitted, "warning"));
    add("vouched", "On the author's word", report.vouched.len(), vouched(report));
    add("types", "Changed types", report.types.len(), types::render(&report.types));
    add("data", "Changed data", report.data_changes.len(), data::changed(&report.data_changes));
    add("hooks", "Hooks", report.hooks.len(), data::hooks(&report.hooks));
    if let Some(details) = &report.details {
        add("functions", "Functions", functions(report), functions::render(report, details));
        let tables = details.tables.len() + details.left_out.len() + usize::from(details.fixups > 0);
        add("tables", "What the kernel is told of the new code", tables, symbols::tables(details));
    }
    add("new-data", "New data", report.data.len(), data::new(&report.data));
    if let Some(details) = &report.details {
        add("symbols", "Symbols of the kernel", details.symbols.len(), symbols::render(&details.symbols));
    }
    let modules: BTreeSet<&String> = report.modules.iter().map(|unit| &unit.module).collect();
    let notes = report.notes.len() + usize::from(!modules.is_empty());
    add(
        "notes",
        "Notes",
        notes,
        html! {
            ul.plain {
                @for note in &report.notes { li { (prose(note)) } }
                @if !modules.is_empty() {
                    li { "Modules that change as well and stay as they are: " @for module in &modules { code { (module) } " " } }
                }
            }
        },
    );
    let reasons = report.reasons.iter().chain(&report.omitted).chain(&warnings).map(|reason| reason.rule.as_str());
    used.extend(reasons);
    used.extend(report.types.iter().map(|row| row.rule.as_str()));
    used.extend(report.data_changes.iter().map(|row| row.rule.as_str()));
    used.extend(report.vouched.iter().map(|vouched| vouched.about.as_str()));
    used.retain(|rule| !catalog::meanings(rule).is_empty());
    add("rules", "The rules named above", used.len(), rules(&used));
    sections
}

fn vouched(report: &Report) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="The author's word" { table {
            caption { "What the author of the diff says and no tool can see; the bundle says so too." }
            thead { tr { th scope="col" { "About" } th scope="col" { "Subject" } th scope="col" { "Says" } th scope="col" { "Reason" } } }
            tbody {
                @for vouched in &report.vouched {
                    tr {
                        td { (rule_link(&vouched.about)) }
                        th scope="row" { code { (vouched.subject) } }
                        td { (prose(&vouched.says)) }
                        td { (prose(&vouched.reason)) }
                    }
                }
            }
        } }
    }
}

fn rules(used: &BTreeSet<&str>) -> Markup {
    html! {
        dl.rules {
            @for rule in used {
                dt id=(rule_id(rule)) { code { (rule) } }
                @for meaning in catalog::meanings(rule) {
                    dd { span.under { (meaning.heading) } ": " (prose(&meaning.text)) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
