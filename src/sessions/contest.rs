//! Whether somebody else's operator speaks on our session: two would run everything twice.

use std::time::Duration;

use tokio::time::Instant;

/// How long a foreign message is held against a session; a live rival repeats itself at the pace of offers.
const QUIET_AFTER: Duration = Duration::from_mins(2);

/// When a rival was last heard.
#[derive(Debug, Default)]
pub(super) struct Contest {
    until: Option<Instant>,
}

impl Contest {
    pub(super) fn heard(&mut self) {
        self.until = Some(Instant::now() + QUIET_AFTER);
    }

    pub(super) fn is_on(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until)
    }

    /// When to look again; in the past once it is over and [`Self::lapse`] was not asked.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Whether it is over now and was not before.
    pub(super) fn lapse(&mut self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until) && self.until.take().is_some()
    }
}
