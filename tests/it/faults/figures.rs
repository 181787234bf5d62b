//! The line of figures that a fault ends with.

use std::{
    env,
    fs::OpenOptions,
    io::{self, Write as _},
    time::Duration,
};

/// What was done to a run, or to several, and what came of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// How often the fault was made.
    pub faults: usize,
    pub phases: usize,
    /// Attempts that were begun: as many as phases, unless runtimes died with theirs.
    pub executed: usize,
    pub took: Duration,
    /// The longest time in which no phase of a run came to its end.
    pub longest_gap: Duration,
}

impl Figures {
    /// Of this run and another one that followed it.
    pub fn and(self, next: Self) -> Self {
        Self {
            faults: self.faults + next.faults,
            phases: self.phases + next.phases,
            executed: self.executed + next.executed,
            took: self.took + next.took,
            longest_gap: self.longest_gap.max(next.longest_gap),
        }
    }

    /// Fails the test unless phases stood still for so long: a fault that did not hit proves nothing.
    pub fn stood_still(self, at_least: Duration) -> Self {
        assert!(self.longest_gap > at_least, "the fault did not hit: {self:?}, and not {at_least:?}");
        self
    }

    /// One line on standard error, and one more in the file that `PMP_FAULTS_LIST` names. Written to the stream itself:
    /// what goes through the macros is caught by the harness and shown only of tests that fail.
    pub fn tell(&self, fault: &str) {
        let Self { faults, phases, executed, took, longest_gap } = self;
        let (took, gap) = (took.as_secs_f64(), longest_gap.as_secs_f64());
        let line = format!(
            "fault: {fault:<56} {faults:>3} x, {phases:>4} phases, {executed:>4} executed, {took:>6.1} s, longest gap {gap:>4.1} s\n"
        );
        // A closed stream or a full disk loses figures and no verdict.
        let _ = io::stderr().lock().write_all(format!("\n{line}").as_bytes());
        if let Some(list) = env::var_os("PMP_FAULTS_LIST") {
            let file = OpenOptions::new().append(true).create(true).open(list);
            let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
        }
    }
}
