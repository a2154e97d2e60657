//! Progress of long work, on standard error: what is being done, and how long it took.
//!
//! On a terminal the running step is a line with a clock; elsewhere each step is one plain line when
//! it starts and one when it ends, so that a log shows what is being waited for.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often the clock on a terminal moves.
const TICK: Duration = Duration::from_millis(100);

/// Where progress goes.
#[derive(Debug, Clone, Copy)]
pub enum Progress {
    /// A person watches.
    Terminal,
    /// A log.
    Lines,
    /// Nowhere.
    Silent,
}

impl Progress {
    /// [`Progress::Terminal`] if standard error is one, else [`Progress::Lines`].
    pub fn detect() -> Progress {
        match std::io::stderr().is_terminal() {
            true => Progress::Terminal,
            false => Progress::Lines,
        }
    }

    /// Starts a step.
    pub fn start(self, what: impl Display) -> Step {
        let what = what.to_string();
        let bar = match self {
            Progress::Terminal => {
                let bar = ProgressBar::new_spinner().with_message(what.clone());
                if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
                    bar.set_style(style);
                }
                bar.enable_steady_tick(TICK);
                Some(bar)
            }
            Progress::Lines => {
                print_line(&format!("… {what}"));
                None
            }
            Progress::Silent => None,
        };
        Step {
            progress: self,
            what,
            bar,
            started: Instant::now(),
        }
    }

    /// Says something once.
    pub fn note(self, text: impl Display) {
        match self {
            Progress::Terminal | Progress::Lines => print_line(&format!("• {text}")),
            Progress::Silent => {}
        }
    }
}

/// A closed standard error must not end a build.
fn print_line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A running step. Dropped without [`Step::done`], it has failed and says nothing more: the error does.
#[derive(Debug)]
pub struct Step {
    progress: Progress,
    what: String,
    bar: Option<ProgressBar>,
    started: Instant,
}

impl Step {
    /// Ends the step; `result` is what came out, or empty.
    pub fn done(self, result: impl Display) -> Duration {
        let took = self.started.elapsed();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let result = result.to_string();
        let arrow = if result.is_empty() { "" } else { ": " };
        let line = format!(
            "✓ {}{arrow}{result} ({:.1} s)",
            self.what,
            took.as_secs_f64()
        );
        match self.progress {
            Progress::Terminal | Progress::Lines => print_line(&line),
            Progress::Silent => {}
        }
        took
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
