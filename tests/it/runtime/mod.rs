//! Runtimes against an operator that says what the test tells it to: the SDK in this process, `pmp runtime` and
//! `examples/runtime.py` as processes. Only the messages are looked at, and how often work was begun.

mod keeping;
mod offers;
mod outages;
mod processes;
mod sessions;
mod shipped;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt as _;
use jiff::Timestamp;
use pmp::{
    bus::{Bus, Message, Subscription},
    engine::ReportStatus,
    protocol::{AckMessage, Channel, GrantMessage, Prefix, SessionId, StateMessage},
    runtime::{Decline, Handle, Job, Labels, Options, Outcome, Runtime, Standing, Work, start},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};

/// For what takes milliseconds on an idle machine.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// An operator that does nothing by itself, for one session.
pub struct Clerk {
    pub bus: Bus,
    pub prefix: Prefix,
    session: SessionId,
    acks: Subscription,
    states: Subscription,
    /// Attempts and who has them.
    bound: BTreeMap<String, String>,
    ended: BTreeSet<String>,
}

impl Clerk {
    pub async fn on(bus: &Bus, prefix: &Prefix) -> Self {
        let session = SessionId::new("s1").unwrap();
        let listen = async |channel| {
            let mut subscription = bus.subscribe(&prefix.pattern(channel), None).await.unwrap();
            bus.prove(&mut subscription, &prefix.probe_subject(channel), DEADLINE).await.unwrap();
            subscription
        };
        Self {
            bus: bus.clone(),
            prefix: prefix.clone(),
            session,
            acks: listen(Channel::Ack).await,
            states: listen(Channel::State).await,
            bound: BTreeMap::new(),
            ended: BTreeSet::new(),
        }
    }

    pub async fn publish(&self, channel: Channel, body: &Value) {
        let subject = self.prefix.subject(&self.session, channel);
        self.bus.publish(Message::new(subject, body.to_string())).await.unwrap();
    }

    pub async fn offer(&self, phase: &str, token: &str, spec: &Value) {
        self.offer_until(phase, token, spec, Timestamp::now() + Duration::from_mins(2)).await;
    }

    pub async fn offer_until(&self, phase: &str, token: &str, spec: &Value, not_after: Timestamp) {
        let target = json!({
            "phaseId": phase,
            "reason": "dependencies satisfied",
            "x-attempt": token,
            "x-notAfter": not_after,
            "x-phase": {"kind": "Phase", "id": phase, "spec": spec},
        });
        self.publish(Channel::Target, &target).await;
    }

    pub async fn control(&self, body: &Value) {
        self.publish(Channel::Control, body).await;
    }

    /// The next ack, and where its answer is waited for.
    pub async fn ack(&mut self) -> (AckMessage, Option<String>) {
        let message = timeout(DEADLINE, self.acks.next()).await.expect("an ack comes").unwrap();
        (AckMessage::parse(&message.body).unwrap(), message.reply)
    }

    pub async fn reply(&self, to: Option<String>, granted: bool) {
        let to = to.expect("the ack is a request");
        self.bus.publish(Message::new(to, GrantMessage { granted }.to_bytes())).await.unwrap();
    }

    /// Answers the next ack.
    pub async fn answer(&mut self, granted: bool) -> AckMessage {
        let (ack, reply) = self.ack().await;
        self.reply(reply, granted).await;
        ack
    }

    pub async fn state(&mut self) -> StateMessage {
        let message = timeout(DEADLINE, self.states.next()).await.expect("a report comes").unwrap();
        StateMessage::parse(&message.body).unwrap()
    }

    /// The next report that is not `running`.
    pub async fn end(&mut self) -> StateMessage {
        loop {
            let state = self.state().await;
            if state.status != ReportStatus::Running {
                return state;
            }
        }
    }

    /// Binds each attempt to whoever asks first, as an operator does, until so many have ended in all; answers with who
    /// had which.
    pub async fn bind_until_ended(&mut self, count: usize) -> &BTreeMap<String, String> {
        while self.ended.len() < count {
            let (message, is_ack) = tokio::select! {
                ack = self.acks.next() => (ack.unwrap(), true),
                state = self.states.next() => (state.unwrap(), false),
                () = tokio::time::sleep(DEADLINE) => panic!("{} of {count} have ended: {:?}", self.ended.len(), self.bound),
            };
            if is_ack {
                let ack = AckMessage::parse(&message.body).unwrap();
                let (token, name) = (ack.attempt.unwrap().to_string(), ack.runtime.unwrap());
                let is_over = self.ended.contains(&token);
                let holder = self.bound.entry(token).or_insert_with(|| name.clone());
                let granted = *holder == name && !is_over;
                self.reply(message.reply, granted).await;
            } else {
                let state = StateMessage::parse(&message.body).unwrap();
                let token = state.attempt.unwrap().to_string();
                assert_eq!(state.runtime.as_ref(), self.bound.get(&token), "{token} is reported by its holder");
                if state.status != ReportStatus::Running {
                    self.ended.insert(token);
                }
            }
        }
        &self.bound
    }
}

/// Work that ends once its gate is open, and notes what it began.
#[derive(Clone)]
pub struct Gated {
    begun: Arc<Mutex<Vec<String>>>,
    gate: watch::Sender<bool>,
}

impl Gated {
    pub fn closed() -> Self {
        Self { begun: Arc::default(), gate: watch::Sender::new(false) }
    }

    pub fn open() -> Self {
        Self { begun: Arc::default(), gate: watch::Sender::new(true) }
    }

    pub fn let_go(&self) {
        self.gate.send_replace(true);
    }

    /// Tokens in the order in which they were begun.
    pub fn begun(&self) -> Vec<String> {
        self.begun.lock().unwrap().clone()
    }
}

impl Work for Gated {
    fn kind(&self) -> std::borrow::Cow<'static, str> {
        "gated".into()
    }

    fn judge(&self, job: &Job) -> Result<(), Decline> {
        if job.spec.contains_key("x-foreign") { Err(Decline("Foreign")) } else { Ok(()) }
    }

    async fn run(&self, job: &Job, handle: &Handle) -> Outcome {
        self.begun.lock().unwrap().push(job.token.to_string());
        let mut gate = self.gate.subscribe();
        tokio::select! {
            _ = gate.wait_for(|open| *open) => Outcome::complete(),
            () = handle.cancelled() => Outcome::Cancelled,
        }
    }
}

/// Options of a runtime under exactly this name.
pub fn options(name: &str, prefix: &Prefix, labels: &[&str]) -> Options {
    Options {
        name: name.to_owned(),
        labels: Labels::carried(labels.iter().copied()).unwrap(),
        prefix: prefix.clone(),
        ..Options::new(name)
    }
}

/// A runtime that is heard.
pub async fn listening(bus: &Bus, options: Options, work: impl Work) -> Runtime {
    let runtime = start(bus.clone(), options, work).await.unwrap();
    until_listening(&runtime).await;
    runtime
}

pub async fn until_listening(runtime: &Runtime) {
    let mut standing = runtime.standing();
    let listening = standing.wait_for(|standing| *standing == Standing::Listening);
    let Ok(found) = timeout(DEADLINE, listening).await else {
        panic!("the runtime does not listen: {:?}", runtime.standing().borrow())
    };
    found.unwrap();
}
