//! One phase of a session: its states, why it is in them, and what is remembered of it.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::manifest::{ExternalWait, PhaseId};

/// Where a phase is. The wire keeps the protocol's three words; these are for status, HTTP and people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PhaseState {
    /// Wanted, and waiting: for what it depends on, for a free slot, for a runtime, or for its next offer.
    Waiting,
    /// Not wanted; in no count but `idle`.
    Idle,
    /// A target is out and unanswered.
    Offered,
    /// A runtime took it and has not begun.
    Queued,
    Running,
    /// The last attempt failed; the next comes at `due`.
    BackingOff,
    /// Attempts are spent and a person decides (`x-onExhausted: Hold`).
    Held,
    /// Told to stop; what the runtime says before `due` still counts.
    Cancelling,
    Complete,
    /// With `ignored`, what waits for it goes on.
    Failed,
    /// Never started, because something it waits for failed (`blocked_by`).
    UpstreamFailed,
    Skipped,
    Cancelled,
}

impl PhaseState {
    pub const ALL: [Self; 13] = [
        Self::Waiting,
        Self::Idle,
        Self::Offered,
        Self::Queued,
        Self::Running,
        Self::BackingOff,
        Self::Held,
        Self::Cancelling,
        Self::Complete,
        Self::Failed,
        Self::UpstreamFailed,
        Self::Skipped,
        Self::Cancelled,
    ];

    /// No way on but a person's: an edit, Retry, Skip, Complete or Restart.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Complete | Self::Failed | Self::UpstreamFailed | Self::Skipped | Self::Cancelled)
    }

    /// Takes up one of `parallelism`'s slots.
    pub fn is_in_flight(self) -> bool {
        matches!(self, Self::Offered | Self::Queued | Self::Running | Self::Cancelling)
    }

    /// A runtime is bound to an open attempt.
    pub fn is_bound(self) -> bool {
        matches!(self, Self::Queued | Self::Running | Self::Cancelling)
    }

    /// The word in status, HTTP and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "Waiting",
            Self::Idle => "Idle",
            Self::Offered => "Offered",
            Self::Queued => "Queued",
            Self::Running => "Running",
            Self::BackingOff => "BackingOff",
            Self::Held => "Held",
            Self::Cancelling => "Cancelling",
            Self::Complete => "Complete",
            Self::Failed => "Failed",
            Self::UpstreamFailed => "UpstreamFailed",
            Self::Skipped => "Skipped",
            Self::Cancelled => "Cancelled",
        }
    }
}

impl fmt::Display for PhaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a phase is in its state: the closed list that status, events and metrics share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PhaseReason {
    /// No runtime answered the offer in time.
    Unanswered,
    /// A runtime declined; the message is its reason.
    Declined,
    /// The runtime reported `failed`.
    RuntimeFailed,
    /// `waitFor.timeout` passed.
    WaitTimeout,
    /// Taken, and never begun within `timeouts.start`.
    StartTimeout,
    AttemptTimeout,
    /// All attempts together took longer than `x-timeouts.total`.
    TotalTimeout,
    /// Silence for three heartbeats, or for `timeouts.heartbeat`.
    HeartbeatLost,
    /// `timeouts.revision` passed.
    RevisionTimeout,
    /// A raised failure elsewhere stopped it before it began.
    Stopped,
    /// What it waits for failed.
    DependencyFailed,
    /// `shutdown: Drain` came before it began.
    Drained,
    /// `shutdown: Cancel`.
    Shutdown,
    /// An edit changed or removed it while it ran.
    Superseded,
    /// Attempts are spent and `x-onExhausted` says Hold.
    AttemptsExhausted,
    /// A person's request.
    Requested,
}

impl PhaseReason {
    pub const ALL: [Self; 16] = [
        Self::Unanswered,
        Self::Declined,
        Self::RuntimeFailed,
        Self::WaitTimeout,
        Self::StartTimeout,
        Self::AttemptTimeout,
        Self::TotalTimeout,
        Self::HeartbeatLost,
        Self::RevisionTimeout,
        Self::Stopped,
        Self::DependencyFailed,
        Self::Drained,
        Self::Shutdown,
        Self::Superseded,
        Self::AttemptsExhausted,
        Self::Requested,
    ];

    /// One PascalCase word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unanswered => "Unanswered",
            Self::Declined => "Declined",
            Self::RuntimeFailed => "RuntimeFailed",
            Self::WaitTimeout => "WaitTimeout",
            Self::StartTimeout => "StartTimeout",
            Self::AttemptTimeout => "AttemptTimeout",
            Self::TotalTimeout => "TotalTimeout",
            Self::HeartbeatLost => "HeartbeatLost",
            Self::RevisionTimeout => "RevisionTimeout",
            Self::Stopped => "Stopped",
            Self::DependencyFailed => "DependencyFailed",
            Self::Drained => "Drained",
            Self::Shutdown => "Shutdown",
            Self::Superseded => "Superseded",
            Self::AttemptsExhausted => "AttemptsExhausted",
            Self::Requested => "Requested",
        }
    }
}

impl fmt::Display for PhaseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is remembered of one phase. The whole row is stored in status, so that a restored session behaves as this one.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "four facts that are each true or not, in any mix, and stored as such"
)]
pub struct PhaseRecord {
    pub id: PhaseId,
    pub state: PhaseState,
    /// Raised and stored whenever the phase is reopened; never reused. From 1.
    pub run: u32,
    /// Tries in this run so far, the open one included; 0 before the first offer.
    pub attempt: u32,
    /// Targets published for the open attempt.
    pub offers: u32,
    pub reason: Option<PhaseReason>,
    /// From the runtime or from us; at most [`MESSAGE_BYTES_MAX`].
    pub message: String,
    /// Root causes of UpstreamFailed, at most [`BLOCKED_BY_MAX`].
    pub blocked_by: Vec<PhaseId>,
    /// Who is bound to the open attempt, or finished the last one; absent for peers that do not name themselves.
    pub runtime: Option<String>,
    /// `x-progress`, as the runtime wrote it.
    pub progress: Option<String>,
    /// When the phase entered its state.
    pub since: Timestamp,
    /// When the state's own clock runs out: offer, start, backoff, wait or cancel.
    pub due: Option<Timestamp>,
    /// When this run's first attempt was taken.
    pub started_at: Option<Timestamp>,
    /// When this run ended.
    pub finished_at: Option<Timestamp>,
    /// External waits satisfied once and kept.
    pub released: Vec<ExternalWait>,
    /// Failed, and `onFailure.action` is continue.
    pub ignored: bool,
    /// Asked for by Use.
    pub used: bool,
    /// Runs on from an older revision that an edit changed: ends unjudged, then runs again.
    pub superseded: bool,
    /// The attempt was taken without a token (early peers): never offered again.
    pub tokenless: bool,
    /// Announced by the runtime that holds the attempt.
    pub heartbeat: Option<Duration>,
}

impl PhaseRecord {
    /// A phase of which nothing is known but its run: Idle since `now`.
    pub fn fresh(id: &PhaseId, run: u32, now: Timestamp) -> Self {
        Self {
            id: id.clone(),
            state: PhaseState::Idle,
            run,
            attempt: 0,
            offers: 0,
            reason: None,
            message: String::new(),
            blocked_by: Vec::new(),
            runtime: None,
            progress: None,
            since: now,
            due: None,
            started_at: None,
            finished_at: None,
            released: Vec::new(),
            ignored: false,
            used: false,
            superseded: false,
            tokenless: false,
            heartbeat: None,
        }
    }
}

/// Longest message kept in a row, in bytes (cut at a character).
pub const MESSAGE_BYTES_MAX: usize = 256;
/// Most root causes kept in a row; more add nothing a person reads, and keep the walk linear.
pub const BLOCKED_BY_MAX: usize = 8;

/// Names one attempt on the wire (`x-attempt`): opaque, the same however often it is computed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttemptToken(String);

impl AttemptToken {
    /// 128 bits of SHA-256 over uid, phase, run and attempt, in hex: 32 characters.
    pub fn new(uid: &str, phase: &PhaseId, run: u32, attempt: u32) -> Self {
        let mut hash = Sha256::new();
        for part in [uid.as_bytes(), phase.as_str().as_bytes()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.update(run.to_be_bytes());
        hash.update(attempt.to_be_bytes());
        let digest = hash.finalize();
        let mut text = String::with_capacity(32);
        for byte in &digest[..16] {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
            }
        }
        Self(text)
    }

    /// A token as a peer sent it: any text; one that we did not make matches nothing.
    pub fn received(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AttemptToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
