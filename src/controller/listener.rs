//! What a session says, as far as it concerns the cluster: Events, labels, and what others wait for.
//!
//! A listener is called from the session's own loop and never waits: what needs the API server is queued, within bounds.

use std::collections::BTreeMap;

use kube::Client;
use tokio::sync::mpsc;

use super::{
    call::{identity, name, namespace},
    events::{Events, SessionEvents, regarding},
    labels::{LabelRules, put_labels},
    roster::Roster,
};
use crate::{
    bus::{InboundBody, InboundMessage},
    engine::{HandlerKind, Output, PhaseState, Session},
    manifest::ExternalWait,
    resource::PhaseManifest,
    sessions::Listener,
};

/// Labels on their way; one for each outcome of a phase that asks for some.
const LABELS_MAX: usize = 256;

/// Makes a listener for each session.
#[derive(Clone)]
pub struct Voice {
    pub client: Client,
    pub events: Events,
    pub roster: Roster,
    pub passed_on: PassedOn,
    pub label_rules: LabelRules,
}

impl Voice {
    pub fn of(&self, object: &PhaseManifest) -> impl Listener + use<> {
        SessionVoice {
            events: self.events.session(&regarding(object)),
            all_events: self.events.clone(),
            roster: self.roster.clone(),
            passed_on: self.passed_on.clone(),
            labels: Labels { client: self.client.clone(), rules: self.label_rules.clone(), queue: None },
            object: identity(object),
        }
    }
}

struct SessionVoice {
    events: SessionEvents,
    all_events: Events,
    roster: Roster,
    passed_on: PassedOn,
    labels: Labels,
    object: PhaseManifest,
}

/// The way to the labeller, which is started for the first label: most sessions never have one.
struct Labels {
    client: Client,
    rules: LabelRules,
    queue: Option<mpsc::Sender<BTreeMap<String, String>>>,
}

impl Labels {
    fn put(&mut self, labels: BTreeMap<String, String>, object: &PhaseManifest, events: &Events) {
        let queue = self.queue.get_or_insert_with(|| {
            let (queue, labels) = mpsc::channel(LABELS_MAX);
            let labeller = Labeller {
                client: self.client.clone(),
                object: object.clone(),
                rules: self.rules.clone(),
                events: events.session(&regarding(object)),
            };
            tokio::spawn(labeller.run(labels));
            queue
        });
        if queue.try_send(labels).is_err() {
            tracing::warn!(resource = name(object), "too many labels are waiting to be put; some are not");
        }
    }
}

impl Listener for SessionVoice {
    fn hear(&mut self, output: &Output, session: &Session) {
        self.events.hear(output, session);
        match output {
            Output::Transition(transition) => {
                let is_done = matches!(transition.to, PhaseState::Complete | PhaseState::Skipped) || transition.ignored;
                if is_done {
                    let manifest = name(&self.object).to_owned();
                    let wait = ExternalWait { manifest, phase: transition.phase.clone() };
                    self.roster.release(namespace(&self.object), &wait);
                }
            }
            Output::Handler(effect) => {
                let spec = &session.plan().phase(effect.phase).spec;
                let labels = match effect.kind {
                    HandlerKind::Failure => &spec.on_failure.labels,
                    HandlerKind::Success => &spec.on_success.labels,
                    HandlerKind::Held => return,
                };
                if !labels.is_empty() {
                    self.labels.put(labels.clone(), &self.object, &self.all_events);
                }
            }
            _ => {}
        }
    }

    fn pass_on(&mut self, message: InboundMessage) {
        self.passed_on.pass(message);
    }
}

/// The ways to whoever deals with what clients ask: apart, so that no flood of requests delays a command.
#[derive(Clone)]
pub struct PassedOn {
    pub commands: mpsc::Sender<InboundMessage>,
    pub requests: mpsc::Sender<InboundMessage>,
}

impl PassedOn {
    /// Never waits. A request that finds no room is asked again by whoever hears nothing; a command is found in the
    /// stream by the next process, where there is one.
    pub fn pass(&self, message: InboundMessage) {
        let (way, what) = match message.body {
            InboundBody::Control(_) => (&self.commands, "commands"),
            _ => (&self.requests, "requests"),
        };
        let session = message.session.clone();
        if way.try_send(message).is_err() {
            tracing::warn!(%session, "too many {what} are waiting; one was dropped");
        }
    }
}

/// Puts labels, one outcome after the other.
struct Labeller {
    client: Client,
    object: PhaseManifest,
    rules: LabelRules,
    events: SessionEvents,
}

impl Labeller {
    async fn run(mut self, mut labels: mpsc::Receiver<BTreeMap<String, String>>) {
        while let Some(labels) = labels.recv().await {
            match put_labels(&self.client, &self.object, &labels, &self.rules).await {
                Ok(refused) if refused.is_empty() => {}
                Ok(refused) => self.events.labels_refused(&refused),
                Err(error) => tracing::warn!(resource = name(&self.object), %error, "labels were not put"),
            }
        }
    }
}
