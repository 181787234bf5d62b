//! How a word is coloured, and how a span of time is written.

use jiff::Timestamp;
use owo_colors::OwoColorize as _;

use crate::engine::PhaseState;

/// Whether colours are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    Colour,
    /// Not a terminal, `NO_COLOR`, or `TERM=dumb`.
    Plain,
}

impl Paint {
    /// For a text that goes to this stream (NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM are obeyed).
    pub fn of(choice: anstream::ColorChoice) -> Self {
        if matches!(choice, anstream::ColorChoice::Never) { Self::Plain } else { Self::Colour }
    }

    pub fn good(self, text: &str) -> String {
        if self == Self::Colour { text.green().to_string() } else { text.to_owned() }
    }

    pub fn bad(self, text: &str) -> String {
        if self == Self::Colour { text.red().bold().to_string() } else { text.to_owned() }
    }

    pub fn warn(self, text: &str) -> String {
        if self == Self::Colour { text.yellow().to_string() } else { text.to_owned() }
    }

    pub fn busy(self, text: &str) -> String {
        if self == Self::Colour { text.cyan().to_string() } else { text.to_owned() }
    }

    pub fn faint(self, text: &str) -> String {
        if self == Self::Colour { text.dimmed().to_string() } else { text.to_owned() }
    }

    pub fn strong(self, text: &str) -> String {
        if self == Self::Colour { text.bold().to_string() } else { text.to_owned() }
    }

    /// In the colour of the state.
    pub fn state(self, state: PhaseState, ignored: bool, text: &str) -> String {
        match state {
            PhaseState::Complete => self.good(text),
            PhaseState::Failed if !ignored => self.bad(text),
            PhaseState::UpstreamFailed => self.bad(text),
            PhaseState::Failed | PhaseState::BackingOff | PhaseState::Held | PhaseState::Cancelling => self.warn(text),
            PhaseState::Offered | PhaseState::Queued | PhaseState::Running => self.busy(text),
            PhaseState::Waiting | PhaseState::Idle | PhaseState::Skipped | PhaseState::Cancelled => self.faint(text),
        }
    }
}

/// Milliseconds from `from` to `to`; 0 if the clock went back.
pub fn millis_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_millisecond().saturating_sub(from.as_millisecond())).unwrap_or(0)
}

/// `0.3s`, `12.0s`, `3m05s`, `1h02m`.
pub fn span(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0..60 => format!("{}.{}s", seconds, millis % 1000 / 100),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// One line for a terminal: no escape sequences, no control characters, tabs as spaces. What a child or a manifest
/// wrote could otherwise move the cursor or forge a line.
pub fn printable(text: &str) -> String {
    anstream::adapter::strip_str(text)
        .to_string()
        .chars()
        .map(|c| match c {
            '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// The text, filled up with spaces to `width` columns.
pub fn padded(text: &str, width: usize) -> String {
    let used = console::measure_text_width(text);
    format!("{text}{}", " ".repeat(width.saturating_sub(used)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_grow_coarser() {
        let spans: Vec<String> = [0, 340, 12_050, 185_000, 3_725_000].into_iter().map(span).collect();
        assert_eq!(spans, ["0.0s", "0.3s", "12.0s", "3m05s", "1h02m"]);
    }

    #[test]
    fn a_child_cannot_move_the_cursor() {
        assert_eq!(printable("a\x1b[2Jb\tc\rd"), "ab c\u{fffd}d");
    }

    #[test]
    fn without_colour_nothing_is_added() {
        assert_eq!(Paint::Plain.bad("x"), "x");
        assert_ne!(Paint::Colour.bad("x"), "x");
    }
}
