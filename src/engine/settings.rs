//! How a session is to be run: everything of the resource's spec that the engine obeys and an edit may change at once.

use std::{num::NonZeroU32, time::Duration};

use crate::manifest::{Jitter, PhaseId};

/// Acts at once, without a new revision.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub pace: Pace,
    pub shutdown: Option<Shutdown>,
    /// Run this phase and what it waits for, nothing else.
    pub target_phase: Option<PhaseId>,
    /// Phases in flight; absent is no bound.
    pub parallelism: Option<NonZeroU32>,
    pub failure_policy: FailurePolicy,
    pub backoff: Backoff,
    pub timeouts: Timeouts,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pace: Pace::Going,
            shutdown: None,
            target_phase: None,
            parallelism: None,
            failure_policy: FailurePolicy::Stop,
            backoff: Backoff::default(),
            timeouts: Timeouts::default(),
        }
    }
}

/// `spec.suspend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pace {
    #[default]
    Going,
    /// No offers; wait, offer, start, backoff and revision clocks stand still.
    Suspended,
}

/// `spec.shutdown`, judged before suspend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Nothing new; what has started finishes, with its retries.
    Drain,
    /// What has started is told to stop and given `timeouts.cancel`.
    Cancel,
}

/// `spec.failurePolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailurePolicy {
    /// Nothing new after a raised failure.
    #[default]
    Stop,
    /// Branches that do not depend on it go on.
    Isolate,
}

/// `spec.strategy`; part of a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Strategy {
    /// We propose, runtimes accept or decline.
    #[default]
    Hybrid,
    /// We direct: a decline spends an attempt.
    Directed,
    /// Runtimes decide; their reports drive.
    Runtime,
}

/// Exponential backoff between the attempts of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    pub initial: Duration,
    /// 1 to 100.
    pub factor: f64,
    pub max: Duration,
    pub jitter: Jitter,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_secs(1), factor: 2.0, max: Duration::from_mins(5), jitter: Jitter::Full }
    }
}

/// `spec.timeouts`; an absent one is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// How long an offer may stay unanswered.
    pub offer: Duration,
    /// From taken to begun.
    pub start: Option<Duration>,
    /// How long one attempt may run.
    pub attempt: Option<Duration>,
    /// Longest silence of a running attempt; overrides what the runtime announced.
    pub heartbeat: Option<Duration>,
    /// Grace of a cancelled attempt.
    pub cancel: Duration,
    /// From the start of the revision to its verdict.
    pub revision: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            offer: Duration::from_secs(5),
            start: None,
            attempt: None,
            heartbeat: None,
            cancel: Duration::from_secs(30),
            revision: None,
        }
    }
}
