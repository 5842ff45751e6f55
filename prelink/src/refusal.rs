//! A reason why something cannot be done, in a form that people and pipelines can act on.
//!
//! Comes in: nothing. Decided: nothing. Goes out: [`Refusal`].

/// Why a function or datum cannot be part of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{unit}: {message}")]
pub struct Refusal {
    /// Identifier of the rule, in kebab case.
    pub rule: &'static str,
    /// Translation unit.
    pub unit: String,
    /// Function or datum concerned; empty when it is the whole unit.
    pub subject: String,
    /// What was expected and what was found.
    pub message: String,
    /// What the author can do next.
    pub help: String,
}
