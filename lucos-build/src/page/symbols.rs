//! Symbols of the kernel that new code refers to, and what the kernel is told of the new code.
//!
//! Comes in: details of the report. Decided: nothing. Goes out: HTML; the table of symbols can be filtered where scripts run.

use super::text::counted;
use crate::details::{Details, SymbolRow};
use maud::{Markup, html};

/// The symbols, sorted by name.
pub(super) fn render(symbols: &[SymbolRow]) -> Markup {
    html! {
        p.filter hidden {
            label for="filter" { "Only those that contain " }
            input id="filter" type="search" autocomplete="off" spellcheck="false" aria-controls="symbol-table";
            " " output id="shown" for="filter" {}
        }
        div.scroll tabindex="0" role="region" aria-label="Symbols of the kernel" {
            table id="symbol-table" {
                caption { "What new code refers to, and how the place was found" }
                thead {
                    tr {
                        th scope="col" { "Symbol" } th scope="col" { "Address" } th scope="col" { "Kind" } th.number scope="col" { "Bytes" }
                        th scope="col" { "Found in" } th scope="col" { "Referred to by" }
                    }
                }
                tbody {
                    @for symbol in symbols {
                        tr {
                            th scope="row" { code { (symbol.name) } }
                            td { code { (format!("{:#x}", symbol.address)) } }
                            td { (symbol.kind) }
                            td.number { @if symbol.size > 0 { (symbol.size) } @else { "–" } }
                            td { (symbol.how) }
                            td { @for user in &symbol.users { code { (user) } " " } }
                        }
                    }
                }
            }
        }
    }
}

/// Tables about the new code, places that the processor decides, what is left out.
pub(super) fn tables(details: &Details) -> Markup {
    html! {
        @if !details.tables.is_empty() {
            div.scroll tabindex="0" role="region" aria-label="Tables about the new code" {
                table {
                    caption { "Tables about the new code" }
                    thead { tr { th scope="col" { "Section" } th.number scope="col" { "Bytes" } th scope="col" { "Needed to run" } } }
                    tbody {
                        @for table in &details.tables {
                            tr {
                                th scope="row" { code { (table.section) } @if let Some(module) = &table.module { " (module " code { (module) } ")" } }
                                td.number { (table.size) }
                                td { (if table.required { "yes" } else { "no: for tracing and stack traces" }) }
                            }
                        }
                    }
                }
            }
        }
        @if details.fixups > 0 {
            p { (counted(details.fixups, "place", "places")) " in the new code that the kernel chooses at boot are chosen again for the guest: alternatives, paravirtual calls, returns." }
        }
        @if !details.left_out.is_empty() {
            h3 { "Left out, with the consequence" }
            ul.plain {
                @for left in &details.left_out { li { code { (left.section) } " of " code { (left.unit) } ": " (left.consequence) } }
            }
        }
    }
}
