//! Guest runner.
