//! The bodies of the messages: the protocol's fields, and ours with `x-` before them.
//!
//! Every type here goes both ways: the operator writes what a runtime reads, and the other way round. Absent optional
//! fields are not written. The protocol's own fields are also read in `snake_case` (protocol, "Field Naming
//! Conventions", shows both).

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::wire::{self, MessageError};
use crate::{
    engine::{Ack, Answer, AskId, AttemptToken, Report, ReportStatus, RetryAdvice, Strategy},
    manifest::PhaseId,
};

/// Gives a message its `parse` and `to_bytes`.
macro_rules! message {
    ($($name:ident)*) => {$(
        impl $name {
            /// Reads a body; see [`MessageError`] for what is refused.
            pub fn parse(body: &[u8]) -> Result<Self, MessageError> {
                wire::parse(body)
            }

            /// The body as it is published.
            pub fn to_bytes(&self) -> Vec<u8> {
                serde_json::to_vec(self).expect("these types hold string keys only and write no failing field")
            }
        }
    )*};
}

message!(StartMessage ControlMessage TargetMessage AckMessage GrantMessage StateMessage LogMessage EventMessage);

/// `.start`: the plan as a whole, for runtimes that want it; or, from a client, a submission.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StartMessage {
    /// Phases in canonical form, in topological order, less what is kept.
    pub manifest: Vec<Value>,
    #[serde(rename = "dryRun", alias = "dry_run", default)]
    pub dry_run: bool,
    #[serde(rename = "x-revision", default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    #[serde(rename = "x-strategy", default, with = "strategy_option", skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// Ids of phases whose results stand from earlier revisions.
    #[serde(rename = "x-kept", default, with = "wire::phase_ids", skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<PhaseId>,
}

/// `.control`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlMessage {
    pub command: Command,
    /// What the command is about; the whole session when absent.
    #[serde(rename = "x-phaseId", default, with = "wire::phase_id_option", skip_serializing_if = "Option::is_none")]
    pub phase: Option<PhaseId>,
    #[serde(rename = "x-attempt", default, with = "wire::token_option", skip_serializing_if = "Option::is_none")]
    pub attempt: Option<AttemptToken>,
    /// Whom it is for; everyone when absent.
    #[serde(
        rename = "x-runtime",
        default,
        deserialize_with = "wire::name_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub runtime: Option<String>,
}

/// The words of `.control`: the protocol's three and ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Command {
    Pause,
    Resume,
    Cancel,
    /// One attempt. Not the protocol's `cancel` with more fields, because a peer that does not know those would stop the
    /// whole session.
    CancelAttempt,
    /// Whoever holds the attempt, or anything of the session, answers at once.
    Report,
    Retry,
    Skip,
    Use,
    Complete,
    Restart,
}

impl Command {
    pub const ALL: [Self; 10] = [
        Self::Pause,
        Self::Resume,
        Self::Cancel,
        Self::CancelAttempt,
        Self::Report,
        Self::Retry,
        Self::Skip,
        Self::Use,
        Self::Complete,
        Self::Restart,
    ];

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
            Self::CancelAttempt => "x-cancel",
            Self::Report => "x-report",
            Self::Retry => "x-retry",
            Self::Skip => "x-skip",
            Self::Use => "x-use",
            Self::Complete => "x-complete",
            Self::Restart => "x-restart",
        }
    }
}

impl Serialize for Command {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let word = String::deserialize(from)?;
        Self::ALL.into_iter().find(|command| command.as_str() == word).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            serde::de::Error::custom(format_args!("the command is none of {known}"))
        })
    }
}

/// `.target`: an attempt proposed to runtimes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetMessage {
    #[serde(rename = "phaseId", alias = "phase_id", with = "wire::phase_id")]
    pub phase: PhaseId,
    #[serde(default, deserialize_with = "wire::text")]
    pub reason: String,
    /// Absent only from servers that know no more than PMP 1.0.0.
    #[serde(rename = "x-attempt", default, with = "wire::token_option", skip_serializing_if = "Option::is_none")]
    pub attempt: Option<AttemptToken>,
    /// After this a runtime declines instead of starting.
    #[serde(rename = "x-notAfter", default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
    /// The phase itself in canonical form, so that a runtime needs no memory of the manifest.
    #[serde(rename = "x-phase", default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Value>,
}

/// `.ack`: a runtime's answer to a target. As a NATS request it asks for a [`GrantMessage`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckMessage {
    #[serde(rename = "phaseId", alias = "phase_id", with = "wire::phase_id")]
    pub phase: PhaseId,
    /// Required: an answer that does not say yes or no is none.
    pub accepted: bool,
    /// Accepted, and begun later.
    #[serde(default)]
    pub queued: bool,
    #[serde(rename = "x-attempt", default, with = "wire::token_option", skip_serializing_if = "Option::is_none")]
    pub attempt: Option<AttemptToken>,
    #[serde(
        rename = "x-runtime",
        default,
        deserialize_with = "wire::name_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub runtime: Option<String>,
    /// How often the runtime will say that it is alive.
    #[serde(rename = "x-heartbeat", default, with = "wire::duration_option", skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Duration>,
    /// Why it declined.
    #[serde(
        rename = "x-reason",
        default,
        deserialize_with = "wire::text_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub reason: Option<String>,
    /// The runtime's clock, with `x-reason: Expired`.
    #[serde(
        rename = "x-now",
        default,
        deserialize_with = "wire::lenient_time",
        skip_serializing_if = "Option::is_none"
    )]
    pub now: Option<Timestamp>,
}

impl AckMessage {
    /// `x-reason` of a target that came after its `x-notAfter`.
    pub const EXPIRED: &'static str = "Expired";

    /// As the engine takes it; `ask` is set when a reply is waited for.
    pub fn into_input(self, ask: Option<AskId>) -> Ack {
        let answer = match (self.accepted, self.queued) {
            (false, _) => Answer::Declined,
            (true, false) => Answer::Accepted,
            (true, true) => Answer::AcceptedQueued,
        };
        Ack {
            phase: self.phase,
            answer,
            token: self.attempt,
            runtime: self.runtime,
            heartbeat: self.heartbeat,
            reason: self.reason,
            ask,
        }
    }
}

/// The reply to an ack that asked: start, or do not. Required, so that a reply from anything else (a stream's
/// acknowledgement, for one) is never taken for a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantMessage {
    #[serde(rename = "x-granted")]
    pub granted: bool,
}

/// `.state`: a runtime's word on a phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateMessage {
    #[serde(rename = "phaseId", alias = "phase_id", with = "wire::phase_id")]
    pub phase: PhaseId,
    #[serde(with = "report_status")]
    pub status: ReportStatus,
    /// By the runtime's clock; for people.
    #[serde(default, deserialize_with = "wire::lenient_time", skip_serializing_if = "Option::is_none")]
    pub updated: Option<Timestamp>,
    #[serde(rename = "x-attempt", default, with = "wire::token_option", skip_serializing_if = "Option::is_none")]
    pub attempt: Option<AttemptToken>,
    #[serde(
        rename = "x-runtime",
        default,
        deserialize_with = "wire::name_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub runtime: Option<String>,
    #[serde(
        rename = "x-progress",
        default,
        deserialize_with = "wire::text_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub progress: Option<String>,
    #[serde(default, deserialize_with = "wire::text_option", skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Of a failure: `false` means that trying again is of no use.
    #[serde(rename = "x-retryable", default, skip_serializing_if = "Option::is_none")]
    pub retryable: Option<bool>,
    /// Of a failure: when trying again may be of use.
    #[serde(rename = "x-retryAfter", default, with = "wire::duration_option", skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<Duration>,
    /// Said again by a runtime that answers `x-report`.
    #[serde(rename = "x-heartbeat", default, with = "wire::duration_option", skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Duration>,
}

impl StateMessage {
    /// As the engine takes it. `x-retryable: false` outweighs `x-retryAfter`.
    pub fn into_input(self) -> Report {
        let retry = match (self.retryable, self.retry_after) {
            (Some(false), _) => RetryAdvice::Never,
            (_, Some(after)) => RetryAdvice::After(after),
            (_, None) => RetryAdvice::AsConfigured,
        };
        Report {
            phase: self.phase,
            status: self.status,
            token: self.attempt,
            runtime: self.runtime,
            progress: self.progress,
            message: self.message,
            retry,
            heartbeat: self.heartbeat,
        }
    }
}

/// `.log`: one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogMessage {
    #[serde(
        rename = "phaseId",
        alias = "phase_id",
        default,
        with = "wire::phase_id_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub phase: Option<PhaseId>,
    #[serde(default)]
    pub level: LogLevel,
    #[serde(deserialize_with = "wire::text")]
    pub message: String,
    #[serde(default, deserialize_with = "wire::lenient_time", skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Timestamp>,
}

/// How loud a log line is; a word that we do not know reads as `info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Debug,
    #[default]
    Info,
    Warning,
    Error,
}

impl<'de> Deserialize<'de> for LogLevel {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let word = String::deserialize(from)?;
        Ok(match word.to_ascii_lowercase().as_str() {
            "debug" | "trace" => Self::Debug,
            "warning" | "warn" => Self::Warning,
            "error" | "fatal" => Self::Error,
            _ => Self::Info,
        })
    }
}

/// `.events`: something happened in the life of a session. The CloudEvents attributes are headers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventMessage {
    /// One PascalCase word, such as `PhaseFailed` or `SessionSucceeded`.
    #[serde(deserialize_with = "wire::name")]
    pub event: String,
    #[serde(
        rename = "phaseId",
        alias = "phase_id",
        default,
        with = "wire::phase_id_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub phase: Option<PhaseId>,
    /// The phase's or the session's state after it.
    #[serde(default, deserialize_with = "wire::name_option", skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    #[serde(default, deserialize_with = "wire::name_option", skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, deserialize_with = "wire::text_option", skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(default, deserialize_with = "wire::lenient_time", skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Timestamp>,
    #[serde(rename = "x-revision", default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    #[serde(rename = "x-run", default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u32>,
    /// The number of the try within the run, from 1; the token is in `x-attempt` of targets only.
    #[serde(rename = "x-try", default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
}

/// The protocol's three words.
mod report_status {
    use super::{Deserialize, Deserializer, ReportStatus, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
    pub fn serialize<S: Serializer>(status: &ReportStatus, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(match status {
            ReportStatus::Running => "running",
            ReportStatus::Complete => "complete",
            ReportStatus::Failed => "failed",
        })
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ReportStatus, D::Error> {
        match String::deserialize(from)?.as_str() {
            "running" => Ok(ReportStatus::Running),
            "complete" => Ok(ReportStatus::Complete),
            "failed" => Ok(ReportStatus::Failed),
            _ => Err(serde::de::Error::custom("the status is none of running, complete, failed")),
        }
    }
}

/// `Hybrid`, `Directed`, `Runtime`, as in the resource.
mod strategy_option {
    use super::{Deserialize, Deserializer, Serializer, Strategy};

    #[allow(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
    pub fn serialize<S: Serializer>(strategy: &Option<Strategy>, to: S) -> Result<S::Ok, S::Error> {
        match strategy {
            Some(Strategy::Hybrid) => to.serialize_str("Hybrid"),
            Some(Strategy::Directed) => to.serialize_str("Directed"),
            Some(Strategy::Runtime) => to.serialize_str("Runtime"),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Strategy>, D::Error> {
        match Option::<String>::deserialize(from)?.as_deref() {
            None => Ok(None),
            Some("Hybrid") => Ok(Some(Strategy::Hybrid)),
            Some("Directed") => Ok(Some(Strategy::Directed)),
            Some("Runtime") => Ok(Some(Strategy::Runtime)),
            Some(_) => Err(serde::de::Error::custom("the strategy is none of Hybrid, Directed, Runtime")),
        }
    }
}

#[cfg(test)]
mod tests;
