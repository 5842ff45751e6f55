//! What a C text declares at file scope, and what a change of it can reach.
//!
//! Comes in: the text of a header before and after a change, or what the preprocessor made of a unit. Decided: which
//! declarations and macros changed, which names they introduce, and whether a declaration that mentions such a name can
//! pass the change on. Goes out: names, and the answer "anything may change" wherever a text is not understood, so that
//! who relies on it compiles once more than needed, and never once less.

mod declaration;
pub mod items;
pub mod lex;
mod nodes;
pub mod reach;
mod vocabulary;
