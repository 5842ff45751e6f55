//! Data: what becomes of those that exist, with the steps in both directions; hooks; those that come.
//!
//! Comes in: data of the report. Decided: nothing. Goes out: HTML.

use super::text::{prose, rule_link};
use crate::report::{DataChangeRow, DatumRow, HookRow};
use maud::{Markup, html};

/// Existing data that change.
pub(super) fn changed(rows: &[DataChangeRow]) -> Markup {
    html! {
        @for row in rows {
            article {
                h3 { code { (row.name) } " " span class={ "tag " (row.strategy) } { (strategy(&row.strategy)) } }
                p.where {
                    (rule_link(&row.rule)) " "
                    code { @match &row.place { Some(place) => { (place.file) ":" (place.line) } None => { (row.unit) } } }
                }
                p.message { (prose(&row.message)) }
                dl.facts {
                    div { dt { "Bytes" } dd { (row.old_size) @if row.old_size != row.new_size { " → " (row.new_size) } } }
                    @if let Some(address) = &row.old_address { div { dt { "Address" } dd { code { (address) } } } }
                    @if !row.written.is_empty() { div { dt { "Written" } dd { @for range in &row.written { code { (range) } " " } } } }
                    @if !row.users.is_empty() { div { dt { "Used by" } dd { @for user in &row.users { code { (user) } " " } } } }
                    @if let Some(reason) = &row.reason { div { dt { "The author's word" } dd { (prose(reason)) } } }
                }
                @if !row.to_new.is_empty() || !row.to_old.is_empty() {
                    div.pictures {
                        (steps("To the new one, when the update is applied", &row.to_new))
                        (steps("To the old one, when it is taken back", &row.to_old))
                    }
                }
            }
        }
    }
}

fn strategy(strategy: &str) -> &str {
    match strategy {
        "in-place" => "written in place",
        "moved" => "moved to a new place",
        "kept" => "kept as it is",
        other => other,
    }
}

fn steps(title: &str, steps: &[String]) -> Markup {
    html! {
        div {
            h4 { (title) }
            @if steps.is_empty() { p { "Nothing has to be done." } }
            @else { ol.steps { @for step in steps { li { code { (step) } } } } }
        }
    }
}

/// Hooks of the author.
pub(super) fn hooks(hooks: &[HookRow]) -> Markup {
    html! {
        ul.plain {
            @for hook in hooks {
                li { strong { (hook.kind.name()) } ": " @match &hook.subject { Some(subject) => { code { (subject) } } None => { "the whole update" } } }
            }
        }
    }
}

/// Data that the bundle brings.
pub(super) fn new(rows: &[DatumRow]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="New data" {
            table {
                caption { "Data that the bundle brings" }
                thead { tr { th scope="col" { "Name" } th scope="col" { "Unit" } th.number scope="col" { "Bytes" } } }
                tbody {
                    @for row in rows { tr { th scope="row" { code { (row.name) } } td { code { (row.unit) } } td.number { (row.size) } } }
                }
            }
        }
    }
}
