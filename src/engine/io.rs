//! What goes into a session and what comes out of it. Data only.

use std::{sync::Arc, time::Duration};

use super::{
    AttemptToken, PhaseReason, PhaseState,
    settings::{Settings, Strategy},
};
use crate::manifest::{ExternalWait, PhaseId, PhaseIx, Plan};

/// Everything that can happen to a session.
#[derive(Debug, Clone)]
pub enum Input {
    /// [`super::Session::poll_timeout`] has come.
    Tick,
    /// Everything up to the last [`Output::Store`] is stored.
    Stored,
    /// Whether offers may go out, and whether anybody can be heard.
    Offers(OffersGate),
    /// Bus traffic may have been missed (reconnect, takeover, slow consumer): ask who holds what, then listen for
    /// `timeouts.offer` before anything is offered or granted.
    Resync,
    Ack(Ack),
    Report(Report),
    Settings(Box<Settings>),
    Edit(Edit),
    /// The whole list as it stands in spec: new tokens are carried out, results of absent ones forgotten.
    Requests(Vec<Request>),
    /// A phase of another manifest was seen Complete, Skipped or ignored.
    Released(ExternalWait),
}

/// Whether offers may go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffersGate {
    /// The bus is connected, and the store answers.
    Open,
    /// Not now (a store that is slow, another operator on the session); what is said is heard, and clocks go on.
    Closed,
    /// Nobody can be heard: nothing is offered, and no clock is judged. So it is at first. [`Input::Resync`] comes before
    /// it is over.
    Deaf,
}

/// A runtime's answer to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    pub phase: PhaseId,
    pub answer: Answer,
    pub token: Option<AttemptToken>,
    pub runtime: Option<String>,
    /// How often the runtime will say that it is alive.
    pub heartbeat: Option<Duration>,
    /// Of a decline, as the runtime wrote it.
    pub reason: Option<String>,
    /// Set when the runtime asked (NATS request) and waits for [`Output::Answer`]; absent for a plain ack.
    pub ask: Option<AskId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Accepted, and begun as soon as granted.
    Accepted,
    /// Accepted, and begun later.
    AcceptedQueued,
    Declined,
}

/// Names a waiting asker; the shell keeps who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AskId(pub u64);

/// A runtime's word on a phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub phase: PhaseId,
    pub status: ReportStatus,
    pub token: Option<AttemptToken>,
    pub runtime: Option<String>,
    pub progress: Option<String>,
    pub message: Option<String>,
    pub retry: RetryAdvice,
    /// `x-heartbeat`, for runtimes that answer a resync with a report instead of an ack.
    pub heartbeat: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportStatus {
    Running,
    Complete,
    Failed,
}

/// What a `failed` says of trying again (`x-retryable`, `x-retryAfter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RetryAdvice {
    #[default]
    AsConfigured,
    Never,
    After(Duration),
}

/// A new revision.
#[derive(Debug, Clone)]
pub struct Edit {
    pub plan: Arc<Plan>,
    pub revision: u64,
    pub strategy: Strategy,
    pub keep: Keep,
}

/// Which results an edit keeps (`spec.updatePolicy`; Reject never reaches the engine).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Merge: results whose phase, and everything it waits for, is unchanged.
    Unchanged,
    /// Replace: none.
    Nothing,
}

/// One entry of `spec.requests`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub token: String,
    pub action: RequestAction,
    /// Absent for Restart only.
    pub phase: Option<PhaseId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestAction {
    Retry,
    Skip,
    Use,
    Complete,
    Restart,
}

/// How a request ended; kept while its token is in spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRecord {
    pub token: String,
    pub result: RequestResult,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestResult {
    Done,
    /// Why, for a person.
    Refused(String),
}

/// What a session wants done. Indices are of [`super::Session::plan`].
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Store the record; nothing is offered before [`Input::Stored`] says that it is.
    Store,
    /// Publish `.start` with [`super::Session::start_phases`].
    Start,
    Target(Target),
    Control(Control),
    /// To a runtime that asked.
    Answer {
        ask: AskId,
        grant: Grant,
    },
    /// A phase changed its state.
    Transition(Transition),
    /// Carry out a handler.
    Handler(HandlerEffect),
    /// Something worth telling people or counting that changed nothing.
    Note(Note),
    Verdict(Verdict),
    /// A person, an edit or a request set a finished session going again.
    Reopened,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    Granted,
    Refused,
}

/// Propose an attempt. Every target of one token says the same but for `offer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub phase: PhaseIx,
    pub token: AttemptToken,
    pub reason: TargetReason,
    pub attempt: u32,
    /// From 1, of this attempt.
    pub offer: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetReason {
    /// "dependencies satisfied" (the protocol's own example).
    DependenciesSatisfied,
    Retry,
    /// The same attempt again, because nobody took it.
    Repeat,
}

/// What `.control` is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    Pause,
    Resume,
    /// The whole session.
    CancelSession,
    /// One attempt, of everyone, or of the one named.
    Cancel {
        phase: PhaseId,
        token: AttemptToken,
        runtime: Option<String>,
    },
    /// Who holds this attempt, or anything of the session: answer at once.
    Report {
        attempt: Option<(PhaseId, AttemptToken)>,
    },
}

/// A phase went from one state to another (or stayed and opened another attempt or run).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    pub phase: PhaseId,
    pub from: PhaseState,
    pub to: PhaseState,
    pub run: u32,
    pub attempt: u32,
    pub reason: Option<PhaseReason>,
    pub message: String,
    /// Failed, and what waits for it goes on.
    pub ignored: bool,
}

/// The effects of `onFailure` or `onSuccess`, or of a hold: once per (phase, run).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerEffect {
    /// Stable: the same after any crash. Log lines, Events and notifications are named by it.
    pub id: String,
    pub phase: PhaseIx,
    pub kind: HandlerKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HandlerKind {
    Failure,
    Success,
    /// `notify` of `onFailure` only.
    Held,
}

/// What happened and changed nothing. `phase` is as the message named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub kind: NoteKind,
    pub phase: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NoteKind {
    UnknownPhase,
    /// For another attempt or run than the open one.
    StaleToken,
    /// Says what is known already, or what a finished phase cannot become.
    NoEffect,
    /// For a phase that nobody wants.
    NotWanted,
    /// Reported before what it waits for was done.
    OrderViolated,
    /// A second runtime took an attempt without asking.
    DoubleAccept,
    /// A target was refused as too old: clocks differ.
    ClockSkew,
}

impl NoteKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownPhase => "UnknownPhase",
            Self::StaleToken => "StaleToken",
            Self::NoEffect => "NoEffect",
            Self::NotWanted => "NotWanted",
            Self::OrderViolated => "OrderViolated",
            Self::DoubleAccept => "DoubleAccept",
            Self::ClockSkew => "ClockSkew",
        }
    }
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    Succeeded,
    Failed,
    Cancelled,
    /// A dry run.
    Planned,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
            Self::Planned => "Planned",
        }
    }
}
