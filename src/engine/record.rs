//! What is stored of a session, and nothing that is not: `Session::restore(plan, session.record())` behaves as `session`.

use std::time::Duration;

use jiff::Timestamp;

use super::{PhaseRecord, RequestRecord, Verdict, settings::Strategy};

/// A whole session at one moment. [`crate::resource`] writes it into status and reads it back.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub revision: u64,
    pub strategy: Strategy,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub verdict: Option<Verdict>,
    pub paused_since: Option<Timestamp>,
    /// Of this revision.
    pub paused_total: Duration,
    pub availability: Availability,
    /// Some runtime was heard in this revision; `.start` is not repeated.
    pub heard: bool,
    /// The revision's clock ran out.
    pub timed_out: bool,
    /// The highest run of any phase that an edit removed: one that comes back under its old id begins above it,
    /// because a run is never reused.
    pub runs_removed: u32,
    /// In document order of the revision's plan.
    pub phases: Vec<PhaseRecord>,
    pub requests: Vec<RequestRecord>,
}

/// Whether somebody answers offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Availability {
    #[default]
    Unknown,
    Available,
    /// An offer went unanswered and nothing was heard since.
    Unavailable,
}

/// How many phases are where; what `progress` is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub total: u32,
    pub wanted: u32,
    pub idle: u32,
    pub waiting: u32,
    pub offered: u32,
    pub queued: u32,
    pub running: u32,
    pub backing_off: u32,
    pub held: u32,
    pub cancelling: u32,
    pub complete: u32,
    /// Raised ones.
    pub failed: u32,
    pub ignored: u32,
    pub upstream_failed: u32,
    pub skipped: u32,
    pub cancelled: u32,
}

impl Counts {
    /// Complete, Skipped and ignored Failed: the numerator of `progress`.
    pub fn done(&self) -> u32 {
        self.complete + self.skipped + self.ignored
    }
}
