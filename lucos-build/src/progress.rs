//! Progress on a terminal.
//!
//! Comes in: the names of phases. Decided: whether anybody is looking. Goes out: one line on standard error that
//! changes, and what was found by convention.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::time::Duration;

/// Shows what is being done.
pub struct Progress {
    bar: Option<ProgressBar>,
    talk: bool,
}

impl Progress {
    /// `talk`: a person wants to know; a changing line is shown only on a terminal.
    pub fn new(talk: bool) -> Self {
        let bar = (talk && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar, talk }
    }

    /// Nothing is shown.
    pub fn silent() -> Self {
        Self { bar: None, talk: false }
    }

    /// A phase starts.
    pub fn phase(&self, message: impl Into<String>) {
        if let Some(bar) = &self.bar {
            bar.set_message(message.into());
        }
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None if self.talk => eprintln!("{line}"),
            None => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
