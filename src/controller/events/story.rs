//! What the engine says, as what people read in `kubectl describe`. PURE: nothing is sent here.
//!
//! The closed list of reasons is [`Reason`]. A large plan's phases are told only where something went wrong: a
//! thousand lines of success help nobody.

use std::fmt::Write as _;

use crate::{
    engine::{HandlerEffect, HandlerKind, Note, NoteKind, Output, PhaseState, Session, Transition, Verdict},
    manifest::SuccessAction,
    resource::ConditionReason,
};

/// Plans up to this many phases tell of every phase that runs and completes.
pub const TOLD_IN_FULL_MAX: usize = 20;

/// Longest note; the API server takes no more.
pub const NOTE_BYTES_MAX: usize = 1024;

/// Most phases that a note names.
const NAMES_MAX: usize = 5;

/// Every reason of an Event, besides those of conditions that a refused spec has: part of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    Started,
    Reopened,
    Succeeded,
    Failed,
    Cancelled,
    Planned,
    PhaseRunning,
    PhaseComplete,
    PhaseFailed,
    /// An attempt failed, and another follows.
    PhaseBackingOff,
    PhaseHeld,
    /// The messages of a handler.
    OnFailure,
    OnSuccess,
    DoubleAccept,
    OrderViolated,
    ClockSkew,
    /// A label of a handler was not put onto the resource.
    LabelRefused,
    /// The spec is not acted on.
    Refused(ConditionReason),
}

impl Reason {
    /// One PascalCase word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "Started",
            Self::Reopened => "Reopened",
            Self::Succeeded => Verdict::Succeeded.as_str(),
            Self::Failed => Verdict::Failed.as_str(),
            Self::Cancelled => Verdict::Cancelled.as_str(),
            Self::Planned => Verdict::Planned.as_str(),
            Self::PhaseRunning => "PhaseRunning",
            Self::PhaseComplete => "PhaseComplete",
            Self::PhaseFailed => "PhaseFailed",
            Self::PhaseBackingOff => "PhaseBackingOff",
            Self::PhaseHeld => "PhaseHeld",
            Self::OnFailure => "OnFailure",
            Self::OnSuccess => "OnSuccess",
            Self::DoubleAccept => NoteKind::DoubleAccept.as_str(),
            Self::OrderViolated => NoteKind::OrderViolated.as_str(),
            Self::ClockSkew => NoteKind::ClockSkew.as_str(),
            Self::LabelRefused => "LabelRefused",
            Self::Refused(reason) => reason.as_str(),
        }
    }

    /// A turn of the session as a whole: at most two a revision, Retry or Restart.
    pub(super) fn is_of_session(self) -> bool {
        matches!(
            self,
            Self::Started | Self::Reopened | Self::Succeeded | Self::Failed | Self::Cancelled | Self::Planned
        )
    }

    /// What was being done, for machines.
    pub(super) fn action(self) -> &'static str {
        match self {
            Self::Started => "Start",
            Self::Reopened => "Reopen",
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Planned => "Conclude",
            Self::PhaseRunning | Self::PhaseComplete | Self::PhaseFailed => "RunPhase",
            Self::PhaseBackingOff => "RetryPhase",
            Self::PhaseHeld => "HoldPhase",
            Self::OnFailure | Self::OnSuccess | Self::LabelRefused => "Handle",
            Self::DoubleAccept | Self::OrderViolated | Self::ClockSkew => "Listen",
            Self::Refused(_) => "Accept",
        }
    }
}

/// Whether somebody should look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    Normal,
    Warning,
}

impl Weight {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// One Event to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tale {
    pub reason: Reason,
    pub weight: Weight,
    /// One line of at most [`NOTE_BYTES_MAX`].
    pub note: String,
    /// Names what happened, within its object: the same after any crash, another for whatever else happens.
    pub id: String,
}

impl Tale {
    /// Makes the note fit: one line, no control characters, no more than the API server takes.
    pub(super) fn new(reason: Reason, weight: Weight, id: String, note: &str) -> Self {
        Self { reason, weight, note: fitted(note), id }
    }
}

/// What there is to tell of an output; nothing of most.
pub(super) fn tale(output: &Output, session: &Session) -> Option<Tale> {
    match output {
        Output::Start => Some(started(session)),
        Output::Verdict(verdict) => Some(concluded(*verdict, session)),
        Output::Reopened => {
            let id = format!("reopened/{}", course(session));
            let note = format!("the session goes on: {}", progress(session));
            Some(Tale::new(Reason::Reopened, Weight::Normal, id, &note))
        }
        Output::Transition(transition) => of_transition(transition, session),
        Output::Handler(effect) => handled(effect, session),
        Output::Note(note) => noted(note, session),
        Output::Store | Output::Target(_) | Output::Control(_) | Output::Answer { .. } => None,
    }
}

/// Which course of the session this is: every revision, Retry and Restart makes another.
pub(super) fn course(session: &Session) -> String {
    let runs: u64 = session.plan().indices().map(|ix| u64::from(session.phase(ix).run)).sum();
    format!("{}/{runs}", session.revision())
}

fn started(session: &Session) -> Tale {
    let counts = session.counts();
    let note =
        format!("revision {} has started: {} of {} phases are wanted", session.revision(), counts.wanted, counts.total);
    Tale::new(Reason::Started, Weight::Normal, format!("started/{}", course(session)), &note)
}

fn concluded(verdict: Verdict, session: &Session) -> Tale {
    let (reason, weight) = match verdict {
        Verdict::Succeeded => (Reason::Succeeded, Weight::Normal),
        Verdict::Failed => (Reason::Failed, Weight::Warning),
        Verdict::Cancelled => (Reason::Cancelled, Weight::Warning),
        Verdict::Planned => (Reason::Planned, Weight::Normal),
    };
    let done = progress(session);
    let note = match verdict {
        Verdict::Succeeded if session.counts().ignored > 0 => {
            format!("{done}; failures were ignored at {}", failures(session))
        }
        Verdict::Succeeded => done,
        Verdict::Failed => format!("{done}; failed at {}", failures(session)),
        Verdict::Cancelled => format!("cancelled with work left undone: {done}"),
        Verdict::Planned => "the plan is valid; a dry run runs nothing".to_owned(),
    };
    Tale::new(reason, weight, format!("verdict/{}/{}", verdict.as_str(), course(session)), &note)
}

fn progress(session: &Session) -> String {
    let counts = session.counts();
    format!("{} of {} phases are done", counts.done(), counts.wanted)
}

/// The phases whose own failure it was.
fn failures(session: &Session) -> String {
    let failed = session.plan().indices().map(|ix| session.phase(ix)).filter(|row| row.state == PhaseState::Failed);
    let ids: Vec<&str> = failed.map(|row| row.id.as_str()).collect();
    let mut text = ids.iter().take(NAMES_MAX).copied().collect::<Vec<_>>().join(", ");
    if let more @ 1.. = ids.len().saturating_sub(NAMES_MAX) {
        write!(text, " and {more} more").expect("a string takes every text");
    }
    text
}

fn of_transition(transition: &Transition, session: &Session) -> Option<Tale> {
    let Transition { phase, from, to, run, attempt, .. } = transition;
    let is_small = session.plan().len() <= TOLD_IN_FULL_MAX;
    let why = why(transition);
    let (reason, weight, note) = match to {
        PhaseState::Running if is_small && from != to => {
            let row = session.plan().index_of(phase.as_str()).map(|ix| session.phase(ix));
            let by = row.and_then(|row| row.runtime.as_deref()).map(|name| format!(" on {name}")).unwrap_or_default();
            let again = if *attempt > 1 { format!(", attempt {attempt}") } else { String::new() };
            (Reason::PhaseRunning, Weight::Normal, format!("phase {phase} runs{by}{again}"))
        }
        PhaseState::Complete if is_small => {
            (Reason::PhaseComplete, Weight::Normal, format!("phase {phase} is complete{why}"))
        }
        PhaseState::Failed => {
            let then = if transition.ignored { "; what waits for it goes on" } else { "" };
            (Reason::PhaseFailed, Weight::Warning, format!("phase {phase} failed at attempt {attempt}{why}{then}"))
        }
        PhaseState::BackingOff => {
            let note = format!("phase {phase} failed at attempt {attempt} and is tried again{why}");
            (Reason::PhaseBackingOff, Weight::Warning, note)
        }
        PhaseState::Held => {
            let note = format!("phase {phase} is held: ask for Retry, Skip or Complete{why}");
            (Reason::PhaseHeld, Weight::Warning, note)
        }
        _ => return None,
    };
    Some(Tale::new(reason, weight, format!("phase/{phase}/{run}/{attempt}/{to}"), &note))
}

/// `: HeartbeatLost: text`, as much of it as there is.
fn why(transition: &Transition) -> String {
    let reason = transition.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    let message = if transition.message.is_empty() { String::new() } else { format!(": {}", transition.message) };
    format!("{reason}{message}")
}

fn handled(effect: &HandlerEffect, session: &Session) -> Option<Tale> {
    let phase = session.plan().phase(effect.phase);
    let spec = &phase.spec;
    let (reason, weight, messages) = match effect.kind {
        HandlerKind::Failure => (Reason::OnFailure, Weight::Warning, &spec.on_failure.messages),
        HandlerKind::Success if spec.on_success.action == SuccessAction::Raise => {
            (Reason::OnSuccess, Weight::Warning, &spec.on_success.messages)
        }
        HandlerKind::Success => (Reason::OnSuccess, Weight::Normal, &spec.on_success.messages),
        // The transition tells it.
        HandlerKind::Held => return None,
    };
    let said = match messages.as_slice() {
        [] if weight == Weight::Warning && effect.kind == HandlerKind::Success => "raised its success".to_owned(),
        [] => return None,
        messages => messages.join("; "),
    };
    Some(Tale::new(reason, weight, format!("handler/{}", effect.id), &format!("phase {}: {said}", phase.id)))
}

fn noted(note: &Note, session: &Session) -> Option<Tale> {
    let phase = &note.phase;
    let (reason, text) = match note.kind {
        NoteKind::DoubleAccept => {
            (Reason::DoubleAccept, format!("phase {phase} was accepted twice; the second runtime was told to stop"))
        }
        NoteKind::OrderViolated => {
            (Reason::OrderViolated, format!("phase {phase} was reported before what it waits for was done"))
        }
        NoteKind::ClockSkew => {
            (Reason::ClockSkew, format!("a runtime took the offer of phase {phase} for expired: the clocks differ"))
        }
        NoteKind::UnknownPhase | NoteKind::StaleToken | NoteKind::NoEffect | NoteKind::NotWanted => return None,
    };
    let run = session.plan().index_of(phase).map_or(0, |ix| session.phase(ix).run);
    let id = format!("note/{}/{phase}/{}/{run}", note.kind.as_str(), session.revision());
    Some(Tale::new(reason, Weight::Warning, id, &text))
}

fn fitted(note: &str) -> String {
    let mut line = note.replace(char::is_control, " ");
    line.truncate(line.floor_char_boundary(NOTE_BYTES_MAX));
    line
}
