//! What the engine says, as messages on the session's subjects. Data in, messages out; nothing is sent here.

use std::{collections::HashSet, time::Duration};

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    bus::Message,
    engine::{
        AttemptToken, Control, Grant, HandlerEffect, HandlerKind, PhaseState, Session, Target, TargetReason,
        Transition, Verdict,
    },
    manifest::PhaseId,
    protocol::{
        Channel, Command, ControlMessage, EventMessage, GrantMessage, LogLevel, LogMessage, Prefix, SessionId,
        StartMessage, TargetMessage, headers,
    },
};

/// How far ahead `x-notAfter` is: never less than a minute, so that clocks a little apart do no harm.
const NOT_AFTER: Duration = Duration::from_mins(2);

/// Knows where the session's messages go and whose they are.
#[derive(Debug, Clone)]
pub(super) struct Speech {
    pub(super) prefix: Prefix,
    pub(super) session: SessionId,
    /// `Pmp-Origin` of every message.
    pub(super) origin: String,
    /// `Pmp-Holder`: this session task among all that there are, unlike `origin`.
    pub(super) holder: String,
}

impl Speech {
    fn message(&self, channel: Channel, body: Vec<u8>) -> Message {
        Message::new(self.prefix.subject(&self.session, channel), body).with_header(headers::ORIGIN, &self.origin)
    }

    pub(super) fn target(&self, session: &Session, target: &Target, now: Timestamp) -> Message {
        let reason = match target.reason {
            TargetReason::DependenciesSatisfied => "dependencies satisfied",
            TargetReason::Retry => "retry",
            TargetReason::Repeat => "repeat",
        };
        let phase = session.plan().phase(target.phase);
        let body = TargetMessage {
            phase: phase.id.clone(),
            reason: reason.to_owned(),
            attempt: Some(target.token.clone()),
            not_after: now.checked_add(NOT_AFTER).ok(),
            spec: Some(phase.canonical()),
        };
        self.message(Channel::Target, body.to_bytes())
            .with_header(headers::MESSAGE_ID, format!("{}-{}", target.token, target.offer))
            .with_header(headers::TRACEPARENT, traceparent(&target.token))
    }

    pub(super) fn control(&self, control: &Control) -> Message {
        let plain = |command| ControlMessage { command, phase: None, attempt: None, runtime: None };
        let body = match control {
            Control::Pause => plain(Command::Pause),
            Control::Resume => plain(Command::Resume),
            Control::CancelSession => plain(Command::Cancel),
            Control::Cancel { phase, token, runtime } => ControlMessage {
                phase: Some(phase.clone()),
                attempt: Some(token.clone()),
                runtime: runtime.clone(),
                ..plain(Command::CancelAttempt)
            },
            Control::Report { attempt } => ControlMessage {
                phase: attempt.as_ref().map(|(phase, _)| phase.clone()),
                attempt: attempt.as_ref().map(|(_, token)| token.clone()),
                ..plain(Command::Report)
            },
        };
        let message = self.message(Channel::Control, body.to_bytes());
        match control {
            // Said by whoever has just taken the session over: the one before shall hear it.
            Control::Report { .. } => message.with_header(headers::HOLDER, &self.holder),
            _ => message,
        }
    }

    /// Whose the session is, for other processes that believe the same. A question that is meant for no runtime.
    pub(super) fn claim(&self) -> Message {
        let body =
            ControlMessage { command: Command::Report, phase: None, attempt: None, runtime: Some(self.holder.clone()) };
        self.message(Channel::Control, body.to_bytes()).with_header(headers::HOLDER, &self.holder)
    }

    /// What is left to run, in an order in which a peer may walk it; waits on what is not in it are left out, because
    /// they are satisfied.
    pub(super) fn start(&self, session: &Session) -> Message {
        let plan = session.plan();
        let left = session.start_phases();
        let ids: HashSet<&str> = left.iter().map(|&ix| plan.id(ix).as_str()).collect();
        let manifest = left.iter().map(|&ix| without_kept_waits(plan.phase(ix).canonical(), &ids)).collect();
        let is_kept =
            |state: PhaseState| matches!(state, PhaseState::Complete | PhaseState::Skipped | PhaseState::Failed);
        let kept = plan.indices().filter(|&ix| is_kept(session.phase(ix).state)).map(|ix| plan.id(ix).clone());
        let body = StartMessage {
            manifest,
            dry_run: false,
            revision: Some(session.revision()),
            strategy: Some(session.strategy()),
            kept: kept.collect(),
        };
        self.message(Channel::Start, body.to_bytes())
    }

    pub(super) fn grant(reply: String, grant: Grant) -> Message {
        Message::new(reply, GrantMessage { granted: grant == Grant::Granted }.to_bytes())
    }

    /// A handler's lines, each under the effect's stable name, so that a repeat after a crash is known for one.
    pub(super) fn handler(&self, session: &Session, effect: &HandlerEffect, now: Timestamp) -> Vec<Message> {
        let phase = session.plan().phase(effect.phase);
        let (lines, level) = match effect.kind {
            HandlerKind::Failure => (&phase.spec.on_failure.messages, LogLevel::Error),
            HandlerKind::Success => (&phase.spec.on_success.messages, LogLevel::Info),
            // A hold only notifies.
            HandlerKind::Held => return Vec::new(),
        };
        let log = |(line, message): (usize, &String)| {
            let body =
                LogMessage { phase: Some(phase.id.clone()), level, message: message.clone(), timestamp: Some(now) };
            self.message(Channel::Log, body.to_bytes())
                .with_header(headers::MESSAGE_ID, format!("{}-{line}", effect.id))
        };
        lines.iter().enumerate().map(log).collect()
    }

    pub(super) fn transition(&self, session: &Session, transition: &Transition, now: Timestamp) -> Message {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let body = EventMessage {
            event: format!("Phase{}", transition.to),
            phase: Some(transition.phase.clone()),
            state: Some(transition.to.to_string()),
            reason: transition.reason.map(|reason| reason.to_string()),
            message: text(&transition.message),
            timestamp: Some(now),
            revision: Some(session.revision()),
            run: Some(transition.run),
            attempt: Some(transition.attempt),
        };
        self.event(&body, now)
    }

    pub(super) fn verdict(&self, session: &Session, verdict: Verdict, now: Timestamp) -> Message {
        let body = EventMessage {
            event: format!("Session{}", verdict.as_str()),
            phase: None,
            state: Some(verdict.as_str().to_owned()),
            reason: None,
            message: None,
            timestamp: Some(now),
            revision: Some(session.revision()),
            run: None,
            attempt: None,
        };
        self.event(&body, now)
    }

    /// CloudEvents 1.0.2, binary mode: the attributes are headers, the body stays the protocol's.
    fn event(&self, body: &EventMessage, now: Timestamp) -> Message {
        let subject = body.phase.as_ref().map_or("", PhaseId::as_str);
        let id = format!(
            "{}-{}-{subject}-{}-{}-{}",
            self.session.as_str(),
            body.revision.unwrap_or(0),
            body.run.unwrap_or(0),
            body.attempt.unwrap_or(0),
            body.event
        );
        self.message(Channel::Events, body.to_bytes())
            .with_header(headers::CLOUD_EVENT_SPEC_VERSION, "1.0")
            .with_header(headers::CLOUD_EVENT_ID, printable(&id))
            .with_header(headers::CLOUD_EVENT_SOURCE, format!("pmp.dev/{}/{}", self.origin, self.session.as_str()))
            .with_header(headers::CLOUD_EVENT_TYPE, format!("dev.pmp.{}.v1", body.event))
            .with_header(headers::CLOUD_EVENT_TIME, now.to_string())
    }
}

/// Header values are ASCII; a phase id may be anything printable.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect()
}

/// W3C Trace Context: one trace an attempt, the same after any crash, so that spans made of it fit together.
fn traceparent(token: &AttemptToken) -> String {
    let token = token.as_str();
    format!("00-{token}-{}-01", token.get(..16).unwrap_or("0000000000000001"))
}

fn without_kept_waits(mut phase: Value, left: &HashSet<&str>) -> Value {
    let waits = phase.pointer_mut("/spec/waitFor/phases").and_then(Value::as_array_mut);
    if let Some(waits) = waits {
        waits.retain(|id| id.as_str().is_some_and(|id| left.contains(id)));
    }
    phase
}
