//! What a runtime says and how it reads what it hears: the only file here that knows messages.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::Value;

use super::{
    keeping::{self, Keeping},
    ledger::{Known, KnownWhat, Scope},
    work::{Job, Outcome},
};
use crate::{
    bus::{self, Bus, Message},
    engine::{ReportStatus, RetryAdvice},
    manifest::PhaseId,
    protocol::{
        AckMessage, Channel, Command, ControlMessage, GrantMessage, LogLevel, LogMessage, Prefix, SessionId,
        StateMessage, TargetMessage,
    },
};

/// How long an ack waits for its grant before it is asked again.
const GRANT_WAIT: Duration = Duration::from_secs(2);
/// Confirmations of one report that may stay out before it is published plainly: a stream that is gone answers nothing.
const UNCONFIRMED_MAX: u32 = 2;

/// The bus, under one name and one prefix.
#[derive(Clone)]
pub struct Wire {
    pub bus: Bus,
    pub prefix: Prefix,
    /// `x-runtime`.
    pub name: Arc<str>,
    pub heartbeat: Duration,
    pub keeping: Arc<Keeping>,
}

/// Who has a report that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// A connection that was up.
    Plain,
    /// A stream.
    Kept,
}

/// A target that this runtime can use.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    pub job: Job,
    pub not_after: Option<Timestamp>,
}

/// A command that concerns runtimes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub session: SessionId,
    pub command: OrderKind,
    pub scope: Scope,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderKind {
    Cancel,
    Report,
}

/// What came back on an ack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granted {
    Yes,
    /// Somebody else has it, or it is over.
    No,
    /// Nobody listens to acks: the offer is from an operator that is gone, or away.
    Nobody,
    /// It was asked for and no answer came: it may be ours all the same.
    Unknown,
    /// The question never left: it cannot be ours by it.
    Unsent,
}

impl Wire {
    /// Asks to be bound to the attempt; waits for the answer.
    pub async fn ask(&self, job: &Job) -> Granted {
        let ack = AckMessage { accepted: true, heartbeat: Some(self.heartbeat), ..self.answer(job) };
        let message = self.message(&job.session, Channel::Ack, ack.to_bytes());
        let to = message.subject.clone();
        match self.bus.request(message, GRANT_WAIT).await {
            Ok(reply) => match GrantMessage::parse(&reply.body) {
                Ok(GrantMessage { granted: true }) => Granted::Yes,
                Ok(GrantMessage { granted: false }) => Granted::No,
                Err(error) => {
                    // A stream over the ack subject answers requests itself; the operator's answer may come next time.
                    tracing::warn!(phase = %job.phase, %error, "the answer to an ack is no grant");
                    Granted::Unknown
                }
            },
            Err(bus::Error::NoResponders { .. }) => Granted::Nobody,
            Err(error) => {
                let was_sent = match &error {
                    // Denied its inbox, it was heard and cannot hear.
                    bus::Error::Denied { subject } => *subject != to,
                    other => matches!(other, bus::Error::Timeout { .. }),
                };
                if matches!(error, bus::Error::Denied { .. }) {
                    tracing::error!(phase = %job.phase, %error, "no attempt can be asked for");
                } else {
                    tracing::debug!(phase = %job.phase, %error, "no answer to an ack");
                }
                if was_sent { Granted::Unknown } else { Granted::Unsent }
            }
        }
    }

    /// Says that the phase is not done here. Plain: nothing is waited for.
    pub async fn decline(&self, job: &Job, reason: &str) -> Result<(), bus::Error> {
        let ack = AckMessage { reason: Some(reason.to_owned()), ..self.answer(job) };
        self.publish(&job.session, Channel::Ack, ack.to_bytes()).await
    }

    /// Says that the target came after its time, and what time it is here.
    pub async fn decline_expired(&self, job: &Job, now: Timestamp) -> Result<(), bus::Error> {
        let reason = Some(AckMessage::EXPIRED.to_owned());
        let ack = AckMessage { reason, now: Some(now), ..self.answer(job) };
        self.publish(&job.session, Channel::Ack, ack.to_bytes()).await
    }

    /// A decline, to be filled in.
    fn answer(&self, job: &Job) -> AckMessage {
        AckMessage {
            phase: job.phase.clone(),
            accepted: false,
            queued: false,
            attempt: Some(job.token.clone()),
            runtime: Some(self.name.to_string()),
            heartbeat: None,
            reason: None,
            now: None,
        }
    }

    /// Says how an attempt stands, once. What is lost is said again at the next heartbeat, offer or `x-report`, and when
    /// the connection comes back.
    pub async fn say(&self, known: &Known) {
        let state = self.state(known, Timestamp::now());
        if let Err(error) = self.publish(&known.key.session, Channel::State, state.to_bytes()).await {
            tracing::debug!(phase = %known.phase, %error, "a report was not taken");
        }
    }

    /// Says how an attempt ended: through a stream that confirms it, where there is one, else as any report.
    ///
    /// Who is subscribed hears it either way, so a stream that is full, gone or denied costs nothing but the certainty;
    /// one that has not answered so often is not waited for again.
    pub async fn conclude(&self, known: &Known, unconfirmed: u32) -> Result<Taken, bus::Error> {
        let state = self.state(known, Timestamp::now());
        let message = self.message(&known.key.session, Channel::State, state.to_bytes());
        if unconfirmed < UNCONFIRMED_MAX
            && let Some(storage) = self.bus.storage()
            && self.keeping.keeps(&self.bus, storage, &message.subject).await
        {
            match storage.publish(message.clone()).await {
                Ok(_) => return Ok(Taken::Kept),
                Err(error) if keeping::is_lack_of_storage(&error) => {
                    tracing::warn!(phase = %known.phase, %error, "no stream took a final report; it is published plainly");
                    self.keeping.lost(&self.bus).await;
                }
                Err(error) => {
                    self.keeping.forget().await;
                    return Err(error);
                }
            }
        }
        self.bus.publish(message).await.map(|()| Taken::Plain)
    }

    fn state(&self, known: &Known, now: Timestamp) -> StateMessage {
        let mut state = StateMessage {
            phase: known.phase.clone(),
            status: ReportStatus::Running,
            updated: Some(now),
            attempt: Some(known.key.token.clone()),
            runtime: Some(self.name.to_string()),
            progress: None,
            message: None,
            retryable: None,
            retry_after: None,
            heartbeat: None,
        };
        match &known.what {
            KnownWhat::Running { progress } => {
                state.progress.clone_from(progress);
                state.heartbeat = Some(self.heartbeat);
            }
            KnownWhat::Ended(Outcome::Complete { message }) => {
                state.status = ReportStatus::Complete;
                state.message = some(message);
            }
            KnownWhat::Ended(Outcome::Failed { message, retry }) => {
                state.status = ReportStatus::Failed;
                state.message = some(message);
                match retry {
                    RetryAdvice::AsConfigured => {}
                    RetryAdvice::Never => state.retryable = Some(false),
                    RetryAdvice::After(delay) => state.retry_after = Some(*delay),
                }
            }
            KnownWhat::Ended(Outcome::Cancelled) => {
                state.status = ReportStatus::Failed;
                state.message = Some("cancelled".to_owned());
            }
        }
        state
    }

    /// One line for `.log`.
    pub async fn log(
        &self,
        session: &SessionId,
        phase: &PhaseId,
        level: LogLevel,
        line: &str,
    ) -> Result<(), bus::Error> {
        let log = LogMessage {
            phase: Some(phase.clone()),
            level,
            message: line.to_owned(),
            timestamp: Some(Timestamp::now()),
        };
        self.publish(session, Channel::Log, log.to_bytes()).await
    }

    async fn publish(&self, session: &SessionId, channel: Channel, body: Vec<u8>) -> Result<(), bus::Error> {
        self.bus.publish(self.message(session, channel, body)).await
    }

    fn message(&self, session: &SessionId, channel: Channel, body: Vec<u8>) -> Message {
        Message::new(self.prefix.subject(session, channel), body)
    }

    /// Reads a target; nothing for one that this runtime cannot use, whoever sent it.
    ///
    /// A target without token or phase comes from a server that knows no more than PMP 1.0.0. It grants nothing, so
    /// that taking it could run a phase twice.
    pub fn read_offer(&self, message: &Message) -> Option<Offer> {
        let (session, _) = self.prefix.parse(&message.subject)?;
        let target = TargetMessage::parse(&message.body)
            .inspect_err(|error| tracing::warn!(subject = message.subject, %error, "a target cannot be read"))
            .ok()?;
        let token = target.attempt?;
        let Some(Value::Object(mut phase)) = target.spec else { return None };
        let Some(Value::Object(spec)) = phase.remove("spec") else { return None };
        let job = Job { session, phase: target.phase, token, selector: selector(spec.get("selector"))?, spec };
        Some(Offer { job, not_after: target.not_after })
    }

    /// Reads a command; nothing for one that is not for runtimes.
    pub fn read_order(&self, message: &Message) -> Option<Order> {
        let (session, _) = self.prefix.parse(&message.subject)?;
        let control = ControlMessage::parse(&message.body)
            .inspect_err(|error| tracing::warn!(subject = message.subject, %error, "a command cannot be read"))
            .ok()?;
        let command = match control.command {
            Command::Cancel | Command::CancelAttempt => OrderKind::Cancel,
            Command::Report => OrderKind::Report,
            _ => return None,
        };
        let scope = Scope { phase: control.phase, token: control.attempt, runtime: control.runtime };
        Some(Order { session, command, scope })
    }
}

/// `{matchLabels: {..}}`; absent is empty, and a selector that cannot be read matches nobody.
fn selector(value: Option<&Value>) -> Option<BTreeMap<String, String>> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Some(BTreeMap::new()) };
    let Some(labels) = value.as_object()?.get("matchLabels") else { return Some(BTreeMap::new()) };
    labels.as_object()?.iter().map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn some(message: &str) -> Option<String> {
    (!message.is_empty()).then(|| message.to_owned())
}
