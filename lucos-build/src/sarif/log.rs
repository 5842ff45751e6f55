//! The parts of a SARIF 2.1.0 log that are used, under their names in the standard (chapter 3).
//!
//! Comes in: rules, results and their places. Decided: nothing. Goes out: the JSON of the standard.

use serde::ser::{SerializeMap as _, SerializeStruct as _};
use serde::{Serialize, Serializer};

const VERSION: &str = "2.1.0";
const SCHEMA: &str = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";
/// Name of the source tree, of which paths in it are relative.
const ROOT: &str = "SRCROOT";

/// How much a result matters (3.27.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Error,
    Warning,
    Note,
}

/// Plain text (3.11).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Message {
    pub(super) text: String,
}

/// A rule (3.49).
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RuleItem {
    pub(super) id: String,
    pub(super) short_description: Message,
    pub(super) help: Message,
}

/// Why a result is no matter (3.35).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Suppression {
    pub(super) kind: &'static str,
    pub(super) status: &'static str,
    pub(super) justification: String,
}

/// Lines of a file (3.30).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) start_line: usize,
    pub(super) snippet: Option<String>,
}

impl Serialize for Region {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("startLine", &self.start_line)?;
        if let Some(text) = &self.snippet {
            map.serialize_entry("snippet", &Message { text: text.clone() })?;
        }
        map.end()
    }
}

/// A place in a file (3.28, 3.29).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located {
    /// Path; relative to the source tree unless it begins with `/`.
    pub(super) file: String,
    pub(super) region: Option<Region>,
    /// Line of the text before the diff, where it is a line that goes.
    pub(super) deleted_line: Option<usize>,
}

/// Where a file is (3.4).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ArtifactLocation {
    uri: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    uri_base_id: Option<&'static str>,
}

impl ArtifactLocation {
    fn of(file: &str) -> Self {
        let path = percent_encoded(file);
        if file.starts_with('/') {
            Self { uri: format!("file://{path}"), uri_base_id: None }
        } else {
            Self { uri: path, uri_base_id: Some(ROOT) }
        }
    }
}

/// A path as part of a URI (RFC 3986, section 2.1).
fn percent_encoded(path: &str) -> String {
    let mut encoded = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// What was found (3.27).
#[derive(Debug, Clone)]
pub(super) struct ResultItem {
    pub(super) rule_id: String,
    pub(super) rule_index: usize,
    level: Level,
    pub(super) message: Message,
    subject: Option<String>,
    located: Option<Located>,
    fingerprint: String,
    pub(super) suppressions: Vec<Suppression>,
}

impl ResultItem {
    pub(super) fn new(
        level: Level,
        rule: &str,
        text: String,
        subject: Option<&str>,
        located: Option<Located>,
        fingerprint: String,
    ) -> Self {
        let subject = subject.map(str::to_owned);
        let (rule_id, message) = (rule.to_owned(), Message { text });
        Self { rule_id, rule_index: 0, level, message, subject, located, fingerprint, suppressions: Vec::new() }
    }

    pub(super) fn is_about(&self, subject: &str) -> bool {
        self.subject.as_deref() == Some(subject)
    }

    /// What a subject is (3.33.7).
    fn kind(&self, subject: &str) -> &'static str {
        let is_type = ["struct ", "union ", "enum "].iter().any(|word| subject.starts_with(word));
        match self.rule_id.as_str() {
            _ if is_type => "type",
            "new-lock-in-type" | "lock-retyped" | "objects-elsewhere" | "type-layout" | "type-additive"
            | "enum-value" => "type",
            rule if rule.starts_with("data-") => "variable",
            _ => "function",
        }
    }
}

impl Serialize for ResultItem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut item = serializer.serialize_struct("result", 8)?;
        item.serialize_field("ruleId", &self.rule_id)?;
        item.serialize_field("ruleIndex", &self.rule_index)?;
        item.serialize_field("level", &self.level)?;
        item.serialize_field("message", &self.message)?;
        let mut location = serde_json::Map::new();
        if let Some(located) = &self.located {
            let mut place = serde_json::json!({ "artifactLocation": ArtifactLocation::of(&located.file) });
            if let Some(region) = &located.region {
                place["region"] = serde_json::json!(region);
            }
            location.insert("physicalLocation".to_owned(), place);
            if let Some(line) = located.deleted_line {
                location.insert("properties".to_owned(), serde_json::json!({ "deletedLine": line }));
            }
        }
        if let Some(subject) = &self.subject {
            let logical = serde_json::json!([{ "fullyQualifiedName": subject, "kind": self.kind(subject) }]);
            location.insert("logicalLocations".to_owned(), logical);
        }
        if !location.is_empty() {
            item.serialize_field("locations", &[location])?;
        }
        let known_by = serde_json::json!({ "lucosRuleSubjectFile/v1": self.fingerprint });
        item.serialize_field("partialFingerprints", &known_by)?;
        // An empty list says that there is none; a missing one that it is not known (3.27.23).
        item.serialize_field("suppressions", &self.suppressions)?;
        item.end()
    }
}

/// The log (3.13).
#[derive(Serialize)]
pub(super) struct Log {
    #[serde(rename = "$schema")]
    schema: &'static str,
    version: &'static str,
    runs: [serde_json::Value; 1],
}

impl Log {
    /// A log of one run (3.14).
    pub(super) fn new(rules: Vec<RuleItem>, results: Vec<ResultItem>, verdict: &str) -> Self {
        let run = serde_json::json!({
            "tool": { "driver": {
                "name": "lucos-build",
                "version": env!("CARGO_PKG_VERSION"),
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            } },
            "columnKind": "unicodeCodePoints",
            "originalUriBaseIds": { ROOT: { "description": { "text": "The kernel's source tree." } } },
            "results": results,
            "properties": { "verdict": verdict },
        });
        Self { schema: SCHEMA, version: VERSION, runs: [run] }
    }
}
