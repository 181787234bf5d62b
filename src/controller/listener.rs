//! What a session says, as far as it concerns the cluster: Events, labels, and what others wait for.
//!
//! A listener is called from the session's own loop and never waits: what needs the API server is queued, within bounds.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kube::Client;
use tokio::{
    sync::{Notify, mpsc},
    time::sleep,
};

use super::{
    call::{identity, name, namespace},
    events::{Events, SessionEvents, regarding},
    labels::{LabelRules, put_labels},
    roster::Roster,
};
use crate::{
    bus::{InboundBody, InboundMessage},
    engine::{HandlerKind, Output, PhaseState, Session},
    manifest::{ExternalWait, PhaseIx},
    resource::PhaseManifest,
    sessions::Listener,
};

/// Labels on their way; one for each outcome of a phase that asks for some.
const LABELS_MAX: usize = 256;

/// Between two tries to put labels.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_mins(1);

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
    /// Of a session as it begins, or goes on: the labels of what ended are put once more, since the process before may have
    /// stored an end and died before it put them.
    pub fn of(&self, object: &PhaseManifest, session: &Session) -> impl Listener + use<> {
        let mut voice = SessionVoice {
            events: self.events.session(&regarding(object)),
            all_events: self.events.clone(),
            roster: self.roster.clone(),
            passed_on: self.passed_on.clone(),
            labels: Labels { client: self.client.clone(), rules: self.label_rules.clone(), queue: None },
            object: identity(object),
        };
        let labels = labels_of_ends(session);
        if !labels.is_empty() {
            voice.labels.put(labels, &voice.object, &voice.all_events);
        }
        voice
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
    /// A command found no room.
    pub dropped: Arc<Notify>,
}

impl PassedOn {
    /// Never waits. A request that finds no room is asked again by whoever hears nothing; a command is looked for in the
    /// stream, where there is one.
    pub fn pass(&self, message: InboundMessage) {
        let is_command = matches!(message.body, InboundBody::Control(_));
        let (way, what) = if is_command { (&self.commands, "commands") } else { (&self.requests, "requests") };
        let session = message.session.clone();
        if way.try_send(message).is_err() {
            tracing::warn!(%session, "too many {what} are waiting; one was dropped");
            if is_command {
                self.dropped.notify_one();
            }
        }
    }
}

/// What the phases that have ended ask for. Of two values of one key the earlier, which the later one would not replace.
fn labels_of_ends(session: &Session) -> BTreeMap<String, String> {
    let plan = session.plan();
    let labels = |ix: PhaseIx| {
        let spec = &plan.phase(ix).spec;
        match session.phase(ix).state {
            PhaseState::Failed => Some(&spec.on_failure.labels),
            PhaseState::Complete => Some(&spec.on_success.labels),
            _ => None,
        }
    };
    let asking = plan.indices().filter_map(|ix| Some((ix, labels(ix).filter(|labels| !labels.is_empty())?)));
    let mut asking: Vec<_> = asking.collect();
    asking.sort_by_key(|(ix, _)| session.phase(*ix).finished_at);
    let mut all = BTreeMap::new();
    for (key, value) in asking.into_iter().flat_map(|(_, labels)| labels) {
        all.entry(key.clone()).or_insert_with(|| value.clone());
    }
    all
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
            self.put(&labels).await;
        }
    }

    /// Until they are put, or will never be.
    async fn put(&mut self, labels: &BTreeMap<String, String>) {
        let mut pause = PAUSE_FIRST;
        loop {
            match put_labels(&self.client, &self.object, labels, &self.rules).await {
                Ok(refused) if refused.is_empty() => return,
                Ok(refused) => return self.events.labels_refused(&refused),
                Err(error) if error.is_final() => {
                    return tracing::warn!(resource = name(&self.object), %error, "labels cannot be put");
                }
                Err(error) => tracing::warn!(resource = name(&self.object), %error, "labels were not put yet"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}
