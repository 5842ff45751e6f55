//! Text of the page: messages with code in them, reasons with their place in the diff.
//!
//! Comes in: reasons, the diff. Decided: which lines of the diff are shown. Goes out: HTML.

use crate::catalog;
use crate::report::{Reason, Report};
use maud::{Markup, html};

/// Lines of the diff shown before and behind the one that is meant.
const AROUND: usize = 4;

/// A number of things.
pub(super) fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// A message, in which what stands between `` ` `` is code.
pub(super) fn prose(message: &str) -> Markup {
    let parts: Vec<&str> = message.split('`').collect();
    // Without its partner the last one is only a character.
    let closed = parts.len() % 2 == 1;
    html! {
        @for (index, part) in parts.iter().enumerate() {
            @if index % 2 == 0 { (part) }
            @else if closed || index + 1 < parts.len() { code { (part) } }
            @else { "`" (part) }
        }
    }
}

/// A message, and what a program said, which is kept line by line.
pub(super) fn message(message: &str) -> Markup {
    let (first, said) = message.split_once('\n').map_or((message, None), |(first, said)| (first, Some(said)));
    html! {
        p.message { (prose(first)) }
        @if let Some(said) = said {
            div.scroll tabindex="0" role="region" aria-label="What was said" { pre.said { (said) } }
        }
    }
}

/// The anchor of a rule.
pub(super) fn rule_id(rule: &str) -> String {
    format!("rule-{rule}")
}

/// A rule, leading to what it means if that is known.
pub(super) fn rule_link(rule: &str) -> Markup {
    html! {
        @if catalog::meanings(rule).is_empty() { code.rule { (rule) } }
        @else { a.rule href={ "#" (rule_id(rule)) } { code { (rule) } } }
    }
}

/// Reasons or warnings; `class` says which.
pub(super) fn reasons(report: &Report, reasons: &[Reason], class: &str) -> Markup {
    let diff = String::from_utf8_lossy(&report.diff);
    let lines: Vec<&str> = diff.lines().collect();
    html! {
        ol.reasons {
            @for reason in reasons {
                li class=(class) {
                    p.where {
                        (rule_link(&reason.rule))
                        @if let Some(file) = &reason.file {
                            " " code { (file) @if let Some(line) = reason.line { ":" (line) } }
                        }
                    }
                    (message(&reason.message))
                    @if let Some(line) = reason.diff_line { (excerpt(&lines, line)) }
                    @if let Some(help) = &reason.help { p.help { strong { "What to do: " } (prose(help)) } }
                }
            }
        }
    }
}

/// A line of the diff (from 1) with those around it, inside its hunk.
fn excerpt(lines: &[&str], line: usize) -> Markup {
    let Some(at) = line.checked_sub(1).filter(|at| *at < lines.len()) else { return html! {} };
    let is_head = |line: &&str| line.starts_with("@@") || line.starts_with("diff ") || line.starts_with("--- ");
    let from = at.saturating_sub(AROUND);
    let from = lines[from..at].iter().rposition(is_head).map_or(from, |head| from + head);
    let to = (at + 1 + AROUND).min(lines.len());
    let to = lines[at + 1..to].iter().position(is_head).map_or(to, |head| at + 1 + head);
    let class = |text: &str, number: usize| {
        let kind = match text.as_bytes().first() {
            Some(b'+') => "come",
            Some(b'-') => "go",
            Some(b'@') => "hunk",
            _ => "stay",
        };
        if number == at { format!("{kind} meant") } else { kind.to_owned() }
    };
    html! {
        div.scroll tabindex="0" role="region" aria-label={ "The diff around line " (line) } {
            table.diff {
                caption { "In the diff, line " (line) }
                tbody {
                    @for (offset, text) in lines[from..to].iter().enumerate() {
                        tr class=(class(text, from + offset)) {
                            th scope="row" { (from + offset + 1) }
                            td { (if from + offset == at { "▸" } else { "" }) }
                            td { pre { (text) } }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_in_messages_needs_both_marks() {
        assert_eq!(prose("a `b<` c").into_string(), "a <code>b&lt;</code> c");
        assert_eq!(prose("a `b").into_string(), "a `b");
        assert_eq!(prose("`a``b` `").into_string(), "<code>a</code><code>b</code> `");
    }

    #[test]
    fn an_excerpt_ends_where_its_hunk_ends() {
        let lines = ["--- a", "+++ b", "@@ -1 +1 @@", "-x", "+y", "@@ -9 +9 @@", "-z"];
        let shown = excerpt(&lines, 5).into_string();
        assert!(shown.contains("@@ -1 +1 @@") && shown.contains("<pre>+y</pre>"), "{shown}");
        assert!(!shown.contains("@@ -9") && !shown.contains("+++ b"), "{shown}");
        for line in [0, 8, usize::MAX] {
            assert_eq!(excerpt(&lines, line).into_string(), "");
        }
    }
}
