//! The conditions of the resource: the one list of their types and reasons, and the one table of their values.
//!
//! They follow kstatus, so that Flux, Argo CD and `helm --wait` judge rightly: Reconciling is In Progress, Stalled is
//! Failed, neither with Ready True is Current. Never both. Messages hold neither times nor counts, so that a condition
//! is written when it changes and not while it lasts.

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::engine::Availability;

/// Longest message of a condition in bytes; the API convention allows 32 KiB, people read less.
pub const CONDITION_MESSAGE_BYTES_MAX: usize = 1024;

/// Most phases that a message names.
const NAMES_MAX: usize = 5;

/// Every type of condition, in the order in which they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConditionType {
    /// The spec was understood and can be run.
    Accepted,
    /// The session succeeded.
    Ready,
    /// There is more to do, and it is being done. Absent otherwise.
    Reconciling,
    /// Nothing more happens before a person acts. Absent otherwise.
    Stalled,
    /// How the session ended; Unknown before that, and for a dry run.
    Succeeded,
    /// The session has a verdict.
    Completed,
    /// Somebody answers offers.
    RuntimeAvailable,
    /// The bus is heard, and keeps reports or not. Absent before that is known, and after the verdict.
    BusReady,
}

impl ConditionType {
    pub const ALL: [Self; 8] = [
        Self::Accepted,
        Self::Ready,
        Self::Reconciling,
        Self::Stalled,
        Self::Succeeded,
        Self::Completed,
        Self::RuntimeAvailable,
        Self::BusReady,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Ready => "Ready",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
            Self::Succeeded => "Succeeded",
            Self::Completed => "Completed",
            Self::RuntimeAvailable => "RuntimeAvailable",
            Self::BusReady => "BusReady",
        }
    }
}

/// Every reason of a condition: part of the API. Texts may change, these do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConditionReason {
    /// Of Accepted.
    Valid,
    InvalidManifest,
    InvalidSpec,
    ManifestNotFound,
    SessionTaken,
    TooLarge,
    UnknownConnection,
    UpdateRejected,
    StatusUnreadable,
    SetAside,
    Staged,
    Running,
    Suspended,
    Stopping,
    Held,
    NoRuntime,
    SessionContested,
    Succeeded,
    SucceededWithIgnored,
    Planned,
    Failed,
    Cancelled,
    /// Of RuntimeAvailable.
    NothingOffered,
    RuntimeAnswers,
    OfferUnanswered,
    /// Of BusReady, when True: reports are kept in a stream, or why not.
    JetStream,
    NoJetStream,
    ForeignStream,
    StreamFailed,
    /// Of BusReady, when False.
    BusDisconnected,
    BusTimeout,
    PermissionDenied,
}

impl ConditionReason {
    pub const ALL: [Self; 32] = [
        Self::Valid,
        Self::InvalidManifest,
        Self::InvalidSpec,
        Self::ManifestNotFound,
        Self::SessionTaken,
        Self::TooLarge,
        Self::UnknownConnection,
        Self::UpdateRejected,
        Self::StatusUnreadable,
        Self::SetAside,
        Self::Staged,
        Self::Running,
        Self::Suspended,
        Self::Stopping,
        Self::Held,
        Self::NoRuntime,
        Self::SessionContested,
        Self::Succeeded,
        Self::SucceededWithIgnored,
        Self::Planned,
        Self::Failed,
        Self::Cancelled,
        Self::NothingOffered,
        Self::RuntimeAnswers,
        Self::OfferUnanswered,
        Self::JetStream,
        Self::NoJetStream,
        Self::ForeignStream,
        Self::StreamFailed,
        Self::BusDisconnected,
        Self::BusTimeout,
        Self::PermissionDenied,
    ];

    /// One PascalCase word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "Valid",
            Self::InvalidManifest => "InvalidManifest",
            Self::InvalidSpec => "InvalidSpec",
            Self::ManifestNotFound => "ManifestNotFound",
            Self::SessionTaken => "SessionTaken",
            Self::TooLarge => "TooLarge",
            Self::UnknownConnection => "UnknownConnection",
            Self::UpdateRejected => "UpdateRejected",
            Self::StatusUnreadable => "StatusUnreadable",
            Self::SetAside => "SetAside",
            Self::Staged => "Staged",
            Self::Running => "Running",
            Self::Suspended => "Suspended",
            Self::Stopping => "Stopping",
            Self::Held => "Held",
            Self::NoRuntime => "NoRuntime",
            Self::SessionContested => "SessionContested",
            Self::Succeeded => "Succeeded",
            Self::SucceededWithIgnored => "SucceededWithIgnored",
            Self::Planned => "Planned",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
            Self::NothingOffered => "NothingOffered",
            Self::RuntimeAnswers => "RuntimeAnswers",
            Self::OfferUnanswered => "OfferUnanswered",
            Self::JetStream => "JetStream",
            Self::NoJetStream => "NoJetStream",
            Self::ForeignStream => "ForeignStream",
            Self::StreamFailed => "StreamFailed",
            Self::BusDisconnected => "BusDisconnected",
            Self::BusTimeout => "BusTimeout",
            Self::PermissionDenied => "PermissionDenied",
        }
    }
}

/// Why the operator does not act on a spec. All of them wait for a person: an edit, or another resource going away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    InvalidManifest,
    /// Something outside the phases that the schema cannot refuse.
    InvalidSpec,
    /// What manifestFrom names is not there.
    ManifestNotFound,
    /// Another resource has the session id.
    SessionTaken,
    /// The status would not fit.
    TooLarge,
    UnknownConnection,
    /// updatePolicy is Reject, and the session runs.
    UpdateRejected,
    /// The stored status is not ours.
    StatusUnreadable,
    /// Reconciling this object keeps failing; the others go on.
    SetAside,
}

impl Refusal {
    pub const ALL: [Self; 9] = [
        Self::InvalidManifest,
        Self::InvalidSpec,
        Self::ManifestNotFound,
        Self::SessionTaken,
        Self::TooLarge,
        Self::UnknownConnection,
        Self::UpdateRejected,
        Self::StatusUnreadable,
        Self::SetAside,
    ];

    pub fn reason(self) -> ConditionReason {
        match self {
            Self::InvalidManifest => ConditionReason::InvalidManifest,
            Self::InvalidSpec => ConditionReason::InvalidSpec,
            Self::ManifestNotFound => ConditionReason::ManifestNotFound,
            Self::SessionTaken => ConditionReason::SessionTaken,
            Self::TooLarge => ConditionReason::TooLarge,
            Self::UnknownConnection => ConditionReason::UnknownConnection,
            Self::UpdateRejected => ConditionReason::UpdateRejected,
            Self::StatusUnreadable => ConditionReason::StatusUnreadable,
            Self::SetAside => ConditionReason::SetAside,
        }
    }
}

/// Where a resource is, seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Situation {
    /// The spec is not acted on; the message says what to do. No times in it.
    Refused {
        refusal: Refusal,
        message: String,
    },
    Staged,
    Running,
    Suspended,
    /// Drain or Cancel, and something is still open.
    Stopping,
    /// Held phases, and nothing else can go on. Ids of the held ones.
    HeldAlone {
        phases: Vec<String>,
    },
    /// Held phases, and others go on. Ids of the held ones.
    HeldWithOthers {
        phases: Vec<String>,
    },
    /// An offer went unanswered, and nothing runs.
    NoRuntime,
    /// Another cluster publishes on the session.
    Contested,
    Succeeded,
    /// Ids of the failed phases that were ignored.
    SucceededWithIgnored {
        phases: Vec<String>,
    },
    Planned,
    /// Ids of the phases whose failure was raised.
    Failed {
        phases: Vec<String>,
    },
    Cancelled,
}

/// How the session's bus stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum BusStanding {
    #[default]
    Unknown,
    /// Everything is heard. The reason says whether a stream keeps reports.
    Ready { reason: ConditionReason, message: String },
    /// Nothing is offered before it is heard again.
    Down { reason: ConditionReason, message: String },
}

/// What kstatus and people make of a situation: one row of the table in the design.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    InProgress,
    /// In progress, and waiting for a person: Ready is Unknown without Reconciling.
    Resting,
    Done(Judgement),
    /// Ended, and not well.
    Ended,
    /// Stuck before any verdict.
    Stuck,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Judgement {
    Succeeded,
    /// A dry run says nothing of success.
    Unjudged,
}

impl Situation {
    /// The word for `status.state`.
    pub fn state(&self) -> &'static str {
        match self {
            Self::SucceededWithIgnored { .. } => ConditionReason::Succeeded.as_str(),
            _ => self.reason().as_str(),
        }
    }

    /// For `status.message` and the conditions: lower case, no full stop, at most [`CONDITION_MESSAGE_BYTES_MAX`].
    pub fn message(&self) -> String {
        let text = match self {
            Self::Refused { message, .. } => message.clone(),
            Self::Staged => "staged: nothing of this edit runs before spec.staged is false".to_owned(),
            Self::Running => "phases are under way".to_owned(),
            Self::Suspended => "suspended: nothing is offered before spec.suspend is false".to_owned(),
            Self::Stopping => "shutting down: what has started ends".to_owned(),
            Self::HeldAlone { phases } => {
                format!("held at {}, and nothing else can go on: ask for Retry, Skip or Complete", named(phases))
            }
            Self::HeldWithOthers { phases } => {
                format!("held at {} while others go on: ask for Retry, Skip or Complete", named(phases))
            }
            Self::NoRuntime => "no runtime answers: start one whose labels match the offered phases".to_owned(),
            Self::Contested => "another cluster runs a session of this id: offers have stopped".to_owned(),
            Self::Succeeded => "all phases are done".to_owned(),
            Self::SucceededWithIgnored { phases } => format!("done, with failures ignored at {}", named(phases)),
            Self::Planned => "the plan is valid; a dry run runs nothing".to_owned(),
            Self::Failed { phases } => format!("failed at {}", named(phases)),
            Self::Cancelled => "cancelled with work left undone".to_owned(),
        };
        cut(text)
    }

    /// The reason that Ready and the conditions that follow it share.
    pub fn reason(&self) -> ConditionReason {
        match self {
            Self::Refused { refusal, .. } => refusal.reason(),
            Self::Staged => ConditionReason::Staged,
            Self::Running => ConditionReason::Running,
            Self::Suspended => ConditionReason::Suspended,
            Self::Stopping => ConditionReason::Stopping,
            Self::HeldAlone { .. } | Self::HeldWithOthers { .. } => ConditionReason::Held,
            Self::NoRuntime => ConditionReason::NoRuntime,
            Self::Contested => ConditionReason::SessionContested,
            Self::Succeeded => ConditionReason::Succeeded,
            Self::SucceededWithIgnored { .. } => ConditionReason::SucceededWithIgnored,
            Self::Planned => ConditionReason::Planned,
            Self::Failed { .. } => ConditionReason::Failed,
            Self::Cancelled => ConditionReason::Cancelled,
        }
    }

    fn standing(&self) -> Standing {
        match self {
            Self::Running | Self::Stopping | Self::HeldWithOthers { .. } | Self::NoRuntime | Self::Contested => {
                Standing::InProgress
            }
            Self::Staged | Self::Suspended => Standing::Resting,
            Self::Succeeded | Self::SucceededWithIgnored { .. } => Standing::Done(Judgement::Succeeded),
            Self::Planned => Standing::Done(Judgement::Unjudged),
            Self::Failed { .. } | Self::Cancelled => Standing::Ended,
            Self::Refused { .. } | Self::HeldAlone { .. } => Standing::Stuck,
        }
    }

    /// The table: what a type of condition says now; absent where the resource is to have no such condition.
    fn status(&self, kind: ConditionType, availability: Availability, bus: &BusStanding) -> Option<&'static str> {
        let standing = self.standing();
        let status = match kind {
            ConditionType::Accepted if matches!(self, Self::Refused { .. }) => "False",
            ConditionType::Accepted => "True",
            ConditionType::Ready => match standing {
                Standing::InProgress | Standing::Resting => "Unknown",
                Standing::Done(_) => "True",
                Standing::Ended | Standing::Stuck => "False",
            },
            ConditionType::Reconciling => return (standing == Standing::InProgress).then_some("True"),
            ConditionType::Stalled => return matches!(standing, Standing::Ended | Standing::Stuck).then_some("True"),
            ConditionType::Succeeded => match standing {
                Standing::Done(Judgement::Succeeded) => "True",
                Standing::Ended => "False",
                _ => "Unknown",
            },
            ConditionType::Completed => match standing {
                Standing::Done(_) | Standing::Ended => "True",
                _ => "False",
            },
            ConditionType::RuntimeAvailable => match availability {
                Availability::Unknown => "Unknown",
                Availability::Available => "True",
                Availability::Unavailable => "False",
            },
            ConditionType::BusReady => match (standing, bus) {
                // Nobody listens for a session that is over.
                (Standing::Done(_) | Standing::Ended, _) | (_, BusStanding::Unknown) => return None,
                (_, BusStanding::Ready { .. }) => "True",
                (_, BusStanding::Down { .. }) => "False",
            },
        };
        Some(status)
    }
}

/// The conditions of a resource, in the order of [`ConditionType::ALL`].
///
/// `previous` are those that are stored: a condition keeps its transition time as long as its status is the same.
/// `generation` is the resource's as it was judged, `now` the time of judging; whole seconds of it are kept.
pub fn conditions(
    situation: &Situation,
    availability: Availability,
    bus: &BusStanding,
    previous: &[Condition],
    generation: i64,
    now: Timestamp,
) -> Vec<Condition> {
    let condition = |kind: ConditionType| {
        let status = situation.status(kind, availability, bus)?;
        let (reason, message) = words(kind, situation, availability, bus);
        let unchanged = previous.iter().find(|old| old.type_ == kind.as_str() && old.status == status);
        Some(Condition {
            type_: kind.as_str().to_owned(),
            status: status.to_owned(),
            reason: reason.as_str().to_owned(),
            message,
            observed_generation: Some(generation),
            last_transition_time: unchanged
                .map_or_else(|| Time(whole_seconds(now)), |old| old.last_transition_time.clone()),
        })
    };
    ConditionType::ALL.into_iter().filter_map(condition).collect()
}

fn words(
    kind: ConditionType,
    situation: &Situation,
    availability: Availability,
    bus: &BusStanding,
) -> (ConditionReason, String) {
    if let (ConditionType::BusReady, BusStanding::Ready { reason, message } | BusStanding::Down { reason, message }) =
        (kind, bus)
    {
        return (*reason, cut(message.clone()));
    }
    match (kind, situation, availability) {
        (ConditionType::Accepted, Situation::Refused { .. }, _) => (situation.reason(), situation.message()),
        (ConditionType::Accepted, ..) => (ConditionReason::Valid, "the manifest is valid".to_owned()),
        (ConditionType::RuntimeAvailable, _, Availability::Unknown) => {
            (ConditionReason::NothingOffered, "nothing has been offered yet".to_owned())
        }
        (ConditionType::RuntimeAvailable, _, Availability::Available) => {
            (ConditionReason::RuntimeAnswers, "a runtime answers offers".to_owned())
        }
        (ConditionType::RuntimeAvailable, _, Availability::Unavailable) => {
            (ConditionReason::OfferUnanswered, Situation::NoRuntime.message())
        }
        _ => (situation.reason(), situation.message()),
    }
}

/// As they are stored: a status that was read back compares equal to the one that was written.
fn whole_seconds(at: Timestamp) -> Timestamp {
    at.round(TimestampRound::new().smallest(Unit::Second).mode(RoundMode::Floor)).unwrap_or(at)
}

/// `phase a`, `phases a, b`, and after a few names how many more.
fn named(phases: &[String]) -> String {
    let shown = phases.iter().take(NAMES_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    let noun = if phases.len() == 1 { "phase" } else { "phases" };
    match phases.len().saturating_sub(NAMES_MAX) {
        0 => format!("{noun} {shown}"),
        more => format!("{noun} {shown} and {more} more"),
    }
}

fn cut(mut text: String) -> String {
    if text.len() > CONDITION_MESSAGE_BYTES_MAX {
        let end = (0..=CONDITION_MESSAGE_BYTES_MAX).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests;
