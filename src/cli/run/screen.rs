//! Where progress goes: standard error, as a board on a terminal, as plain lines anywhere else.
//!
//! The result goes to standard output and is not this file's business, so `pmp run .. > result` works.

use std::io::{IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{board::Area, paint::Paint};

/// Board redraws a second: often enough for a spinner, too seldom to cost anything.
const FRAMES_PER_SECOND: u8 = 12;

/// Standard error.
#[derive(Debug)]
pub enum Screen {
    /// Lines scroll above a board that is drawn again and again.
    Live(ProgressBar),
    Lines,
    /// `--quiet`: nothing.
    Silent,
}

impl Screen {
    /// A board where standard error is a terminal that can move its cursor, else lines.
    pub fn open() -> Self {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if !std::io::stderr().is_terminal() || is_dumb {
            return Self::Lines;
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(FRAMES_PER_SECOND));
        bar.set_style(ProgressStyle::with_template("{msg}").expect("the template is one known word"));
        Self::Live(bar)
    }

    pub fn is_live(&self) -> bool {
        matches!(self, Self::Live(_))
    }

    /// What there is to draw on now: terminals are resized.
    pub fn area() -> Area {
        let (rows, columns) = console::Term::stderr().size();
        Area { columns: usize::from(columns), rows: usize::from(rows) }
    }

    /// How standard error takes colours.
    pub fn paint() -> Paint {
        Paint::of(anstream::AutoStream::choice(&std::io::stderr()))
    }

    /// One line that stays.
    pub fn say(&self, line: &str) {
        match self {
            Self::Live(bar) => bar.println(line),
            // A closed standard error is no reason to stop the work.
            Self::Lines => drop(writeln!(std::io::stderr().lock(), "{line}")),
            Self::Silent => {}
        }
    }

    /// Draws the board anew.
    pub fn draw(&self, lines: &[String]) {
        if let Self::Live(bar) = self {
            bar.set_message(lines.join("\n"));
        }
    }

    /// Takes the board away; what was said stays.
    pub fn close(&self) {
        if let Self::Live(bar) = self {
            bar.finish_and_clear();
        }
    }
}
