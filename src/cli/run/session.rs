//! A session on a bus without a cluster: the engine, the bus and the clock, tied together and nothing else.
//!
//! There is no store, so that everything is stored as soon as it is said, and nobody but this process knows the
//! session. It ends with its verdict.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::StreamExt as _;
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use super::input::Task;
use crate::{
    bus::{self, Bus, Message, Subscription},
    engine::{
        AskId, Control, Grant, HandlerEffect, HandlerKind, Input, OffersGate, Output, Record, Session, Settings,
        Target, TargetReason,
    },
    protocol::{
        AckMessage, Channel, Command, ControlMessage, GrantMessage, LogLevel, LogMessage, Prefix, StateMessage,
        TargetMessage,
    },
};

/// How far ahead `x-notAfter` is (design, section 7: at least 60 s).
const NOT_AFTER: Duration = Duration::from_mins(2);
/// Between two pictures: a picture is a copy of every row.
const PICTURE_PACE: Duration = Duration::from_millis(50);
/// Settings in flight; a person sends one or two.
const SETTINGS_MAX: usize = 8;

/// A session under way.
pub struct Local {
    pub picture: watch::Receiver<Arc<Record>>,
    /// Transitions and notes in order. Unbounded, because it holds a few entries for each phase at most, and the engine
    /// must never wait for a terminal.
    pub outputs: mpsc::UnboundedReceiver<Output>,
    pub settings: mpsc::Sender<Settings>,
    pub task: JoinHandle<()>,
}

/// Starts the session; when this answers, it listens, and its first targets are on their way.
pub async fn start(bus: Bus, prefix: &Prefix, work: &Task) -> Result<Local, bus::Error> {
    let acks = bus.subscribe(&prefix.subject(&work.session, Channel::Ack), None).await?;
    let states = bus.subscribe(&prefix.subject(&work.session, Channel::State), None).await?;
    let now = Timestamp::now();
    // Unique on the bus of this process; the pid and the time keep tokens of two runs apart in their logs.
    let uid = format!("{}-{}", std::process::id(), now.as_nanosecond());
    let session = Session::start(&uid, Arc::clone(&work.plan), 1, work.strategy, work.settings.clone(), now);
    let (picture, pictures) = watch::channel(Arc::new(session.record()));
    let (outputs_in, outputs) = mpsc::unbounded_channel();
    let (settings, settings_out) = mpsc::channel(SETTINGS_MAX);
    let shell = Shell {
        bus,
        prefix: prefix.clone(),
        id: work.session.clone(),
        session,
        asks: HashMap::new(),
        asked: 0,
        picture,
        pictured: (0, Instant::now()),
        outputs: outputs_in,
    };
    let task = tokio::spawn(shell.run(acks, states, settings_out));
    Ok(Local { picture: pictures, outputs, settings, task })
}

struct Shell {
    bus: Bus,
    prefix: Prefix,
    id: crate::protocol::SessionId,
    session: Session,
    /// Where askers wait.
    asks: HashMap<AskId, String>,
    asked: u64,
    picture: watch::Sender<Arc<Record>>,
    /// The version last shown, and when.
    pictured: (u64, Instant),
    outputs: mpsc::UnboundedSender<Output>,
}

impl Shell {
    async fn run(mut self, mut acks: Subscription, mut states: Subscription, mut settings: mpsc::Receiver<Settings>) {
        self.drain().await;
        self.feed(Input::Offers(OffersGate::Open)).await;
        while self.session.verdict().is_none() {
            let due = self.session.poll_timeout().map(until);
            let is_unseen = self.session.version() != self.pictured.0;
            tokio::select! {
                biased;
                Some(settings) = settings.recv() => self.feed(Input::Settings(Box::new(settings))).await,
                Some(message) = acks.next() => {
                    if let Some(input) = self.read_ack(message) {
                        self.feed(input).await;
                    }
                }
                Some(message) = states.next() => match StateMessage::parse(&message.body) {
                    Ok(state) => self.feed(Input::Report(state.into_input())).await,
                    Err(error) => tracing::warn!(%error, "a report cannot be read"),
                },
                () = sleep(due.unwrap_or_default()), if due.is_some() => self.feed(Input::Tick).await,
                () = sleep_until(self.pictured.1 + PICTURE_PACE), if is_unseen => self.show(),
            }
        }
        self.show();
    }

    fn read_ack(&mut self, message: Message) -> Option<Input> {
        let ack = AckMessage::parse(&message.body)
            .inspect_err(|error| tracing::warn!(%error, "an ack cannot be read"))
            .ok()?;
        let ask = message.reply.map(|reply| {
            self.asked += 1;
            self.asks.insert(AskId(self.asked), reply);
            AskId(self.asked)
        });
        Some(Input::Ack(ack.into_input(ask)))
    }

    async fn feed(&mut self, input: Input) {
        self.session.handle(input, Timestamp::now());
        self.drain().await;
    }

    /// Carries out what the engine says; a `Store` is done as soon as it is said.
    async fn drain(&mut self) {
        loop {
            let mut is_store = false;
            while let Some(output) = self.session.poll_output() {
                is_store |= output == Output::Store;
                self.carry_out(&output).await;
                // Nobody looks on any more: the work goes on all the same.
                drop(self.outputs.send(output));
            }
            if !is_store {
                return;
            }
            self.session.handle(Input::Stored, Timestamp::now());
        }
    }

    async fn carry_out(&mut self, output: &Output) {
        match output {
            Output::Target(target) => self.publish(Channel::Target, self.target(target).to_bytes()).await,
            Output::Control(control) => self.publish(Channel::Control, control_message(control).to_bytes()).await,
            Output::Answer { ask, grant } => {
                if let Some(reply) = self.asks.remove(ask) {
                    let grant = GrantMessage { granted: *grant == Grant::Granted };
                    self.send(Message::new(reply, grant.to_bytes())).await;
                }
            }
            Output::Handler(effect) => self.tell(effect).await,
            _ => {}
        }
    }

    fn target(&self, target: &Target) -> TargetMessage {
        let reason = match target.reason {
            TargetReason::DependenciesSatisfied => "dependencies satisfied",
            TargetReason::Retry => "retry",
            TargetReason::Repeat => "repeat",
        };
        let phase = self.session.plan().phase(target.phase);
        TargetMessage {
            phase: phase.id.clone(),
            reason: reason.to_owned(),
            attempt: Some(target.token.clone()),
            not_after: Timestamp::now().checked_add(NOT_AFTER).ok(),
            spec: Some(phase.canonical()),
        }
    }

    /// A handler's messages go to `.log`; there is nobody to notify and nothing to label here.
    async fn tell(&self, effect: &HandlerEffect) {
        let phase = self.session.plan().phase(effect.phase);
        let (messages, level) = match effect.kind {
            HandlerKind::Failure => (&phase.spec.on_failure.messages, LogLevel::Error),
            HandlerKind::Success => (&phase.spec.on_success.messages, LogLevel::Info),
            HandlerKind::Held => return,
        };
        for message in messages {
            let log = LogMessage {
                phase: Some(phase.id.clone()),
                level,
                message: message.clone(),
                timestamp: Some(Timestamp::now()),
            };
            self.publish(Channel::Log, log.to_bytes()).await;
        }
    }

    async fn publish(&self, channel: Channel, body: Vec<u8>) {
        self.send(Message::new(self.prefix.subject(&self.id, channel), body)).await;
    }

    /// What is lost is offered or asked for again by the engine's clocks.
    async fn send(&self, message: Message) {
        if let Err(error) = self.bus.publish(message).await {
            tracing::warn!(%error, "a message was not taken by the bus");
        }
    }

    fn show(&mut self) {
        self.pictured = (self.session.version(), Instant::now());
        self.picture.send_replace(Arc::new(self.session.record()));
    }
}

fn control_message(control: &Control) -> ControlMessage {
    let plain = |command| ControlMessage { command, phase: None, attempt: None, runtime: None };
    match control {
        Control::Pause => plain(Command::Pause),
        Control::Resume => plain(Command::Resume),
        Control::CancelSession => plain(Command::Cancel),
        Control::Cancel { phase, token, runtime } => ControlMessage {
            phase: Some(phase.clone()),
            attempt: Some(token.clone()),
            runtime: runtime.clone(),
            ..plain(Command::Cancel)
        },
        Control::Report { attempt } => ControlMessage {
            phase: attempt.as_ref().map(|(phase, _)| phase.clone()),
            attempt: attempt.as_ref().map(|(_, token)| token.clone()),
            ..plain(Command::Report)
        },
    }
}

fn until(due: Timestamp) -> Duration {
    let millis = due.as_millisecond().saturating_sub(Timestamp::now().as_millisecond());
    // A millisecond more, since a clock that has not quite come is not due.
    Duration::from_millis(u64::try_from(millis).unwrap_or(0) + 1)
}
