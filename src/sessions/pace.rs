//! How often a store is written to: often enough to watch, seldom enough that the writes are not the work.

use std::time::Duration;

use tokio::time::Instant;

/// Bounds of the pause between two writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pacing {
    /// The least, from the start of one write to the start of the next.
    pub least: Duration,
    /// At least this many times what the last write took: a large status leaves the API server time for others.
    pub times_last: u32,
    /// The most.
    pub most: Duration,
}

/// Whether a write can wait for its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum Urgency {
    #[default]
    Paced,
    /// A verdict, a first failure, a hold, a raised run: what people and crashes wait for.
    Now,
}

/// When the next write may begin.
#[derive(Debug)]
pub(super) struct Pace {
    pacing: Pacing,
    /// When the session began: long ago enough for whatever cannot wait.
    began: Instant,
    next: Instant,
}

impl Pace {
    pub(super) fn new(pacing: Pacing) -> Self {
        let now = Instant::now();
        Self { pacing, began: now, next: now }
    }

    pub(super) fn next(&self, urgency: Urgency) -> Instant {
        match urgency {
            Urgency::Paced => self.next,
            Urgency::Now => self.began,
        }
    }

    /// A write ended that began at `began`.
    pub(super) fn wrote(&mut self, began: Instant) {
        let Pacing { least, times_last, most } = self.pacing;
        let pause = began.elapsed().saturating_mul(times_last).clamp(least, most.max(least));
        self.next = began + pause;
    }

    /// A write failed: again after a while, urgent or not.
    pub(super) fn failed(&mut self, failures: u32) -> Instant {
        let pause = self.pacing.least.saturating_mul(1 << failures.min(6)).min(self.pacing.most);
        self.next = Instant::now() + pause;
        self.next
    }
}
