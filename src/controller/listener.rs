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
    bus::InboundMessage,
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
    /// Commands and requests go to whoever answers them.
    pub passed_on: mpsc::Sender<InboundMessage>,
    pub label_rules: LabelRules,
}

impl Voice {
    pub fn of(&self, object: &PhaseManifest) -> impl Listener + use<> {
        let (labels, labels_out) = mpsc::channel(LABELS_MAX);
        let labeller = Labeller {
            client: self.client.clone(),
            object: identity(object),
            rules: self.label_rules.clone(),
            events: self.events.session(&regarding(object)),
        };
        tokio::spawn(labeller.run(labels_out));
        SessionVoice {
            events: self.events.session(&regarding(object)),
            roster: self.roster.clone(),
            passed_on: self.passed_on.clone(),
            labels,
            namespace: namespace(object).to_owned(),
            name: name(object).to_owned(),
        }
    }
}

struct SessionVoice {
    events: SessionEvents,
    roster: Roster,
    passed_on: mpsc::Sender<InboundMessage>,
    labels: mpsc::Sender<BTreeMap<String, String>>,
    namespace: String,
    name: String,
}

impl Listener for SessionVoice {
    fn hear(&mut self, output: &Output, session: &Session) {
        self.events.hear(output, session);
        match output {
            Output::Transition(transition) => {
                let is_done = matches!(transition.to, PhaseState::Complete | PhaseState::Skipped) || transition.ignored;
                if is_done {
                    let wait = ExternalWait { manifest: self.name.clone(), phase: transition.phase.clone() };
                    self.roster.release(&self.namespace, &wait);
                }
            }
            Output::Handler(effect) => {
                let spec = &session.plan().phase(effect.phase).spec;
                let labels = match effect.kind {
                    HandlerKind::Failure => &spec.on_failure.labels,
                    HandlerKind::Success => &spec.on_success.labels,
                    HandlerKind::Held => return,
                };
                if !labels.is_empty() && self.labels.try_send(labels.clone()).is_err() {
                    tracing::warn!(resource = self.name, "too many labels are waiting to be put; some are not");
                }
            }
            _ => {}
        }
    }

    fn pass_on(&mut self, message: InboundMessage) {
        // Whoever asked hears nothing and asks again; a command is sent again by whoever meant it.
        if self.passed_on.try_send(message).is_err() {
            tracing::warn!(resource = self.name, "too many commands and requests are waiting; one was dropped");
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
