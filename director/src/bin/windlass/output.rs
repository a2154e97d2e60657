//! Tables for people, JSON for programs, errors for both.

// The one place where this program prints.
use std::io::{IsTerminal, Write};

use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::json;
use windlass_director::model::Timestamp;

use crate::failure::Failure;

/// How to answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// JSON instead of text.
    pub(crate) json: bool,
}

impl Output {
    /// An answer: the value itself as JSON, or the text made of it.
    pub(crate) fn answer<T: Serialize>(self, value: &T, text: impl FnOnce() -> String) {
        if self.json {
            // Values that come here were JSON or have string keys.
            line(&serde_json::to_string_pretty(value).unwrap_or_default());
        } else {
            line(&text());
        }
    }

    /// An error.
    pub(crate) fn failure(self, failure: &Failure) {
        if self.json {
            let value = json!({"error": {"code": failure.code, "message": failure.message, "faults": failure.faults}});
            line(&value.to_string());
        }
        note(&format!("error: {}", failure.message));
        for fault in &failure.faults {
            note(&format!(
                "  {}: {}; allowed: {}",
                fault.key, fault.value, fault.allowed
            ));
        }
    }
}

/// A line on standard output. A reader that went away is no error of ours.
pub(crate) fn line(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end_matches('\n'));
}

/// A line on standard error.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Whether a person is looking at standard error.
pub(crate) fn watched() -> bool {
    std::io::stderr().is_terminal()
}

/// Columns without borders.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().copied());
    let mut empty = true;
    for row in rows {
        table.add_row(row);
        empty = false;
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    if empty {
        return "nothing".to_owned();
    }
    let text = table.to_string();
    text.lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n")
}

/// A time as its distance to now, for example `3m`.
pub(crate) fn age(time: Timestamp) -> String {
    duration(Timestamp::now().ms_since(time))
}

/// Milliseconds for people: the two largest units at most.
pub(crate) fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..=9 => format!("{}.{}s", s, ms % 1000 / 100),
        10..=59 => format!("{s}s"),
        60..=3599 => format!("{}m{:02}s", s / 60, s % 60),
        3600..=86_399 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3600),
    }
}
