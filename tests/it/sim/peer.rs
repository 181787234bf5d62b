//! Peers that know no more than PMP 1.0.0: no tokens, no grants, and every word said once.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt;
use pmp::{
    bus::{Bus, Link, Message},
    engine::ReportStatus,
    manifest::PhaseId,
    protocol::{Channel, Command, ControlMessage, Prefix, SessionId, StartMessage, StateMessage, TargetMessage},
};
use tokio::{sync::mpsc, time::sleep};

use super::{
    bus::Nats,
    checks::Executed,
    world::{Door, Role, Shared},
};

const WORK: Duration = Duration::from_secs(1);

/// How the peer learns what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// Takes every target, and says again what it knows of one that is offered again.
    Targets,
    /// Takes every target, and says everything once, as soon as its link is up: whoever does not listen then never hears it.
    Once,
    /// Walks the array of `.start` by itself, and says all it knows when asked.
    Start,
}

struct Peer {
    door: Door,
    bus: Bus,
    prefix: Prefix,
    shared: Shared,
    known: BTreeMap<(SessionId, PhaseId), ReportStatus>,
    /// Phases to do, one after the other.
    queue: mpsc::UnboundedSender<(SessionId, PhaseId)>,
    habit: Habit,
    revision: u64,
}

pub async fn invite(name: &str, nats: &Nats, shared: &Shared, prefix: &Prefix, habit: Habit) -> Door {
    let door = Door::new(name, Role::Runtime);
    let bus = nats.connect(&door);
    let listen = async |channel| bus.subscribe(&prefix.pattern(channel), None).await.expect("a legal pattern");
    let mut controls = listen(Channel::Control).await;
    let mut news = listen(if habit == Habit::Start { Channel::Start } else { Channel::Target }).await;
    let (queue, mut todo) = mpsc::unbounded_channel();
    let (done, mut ended) = mpsc::unbounded_channel();
    let (prefix, shared) = (prefix.clone(), shared.clone());
    let known = BTreeMap::new();
    let mut peer = Peer { door: door.clone(), bus, prefix, shared, known, queue, habit, revision: 0 };
    tokio::spawn(async move {
        while let Some(one) = todo.recv().await {
            sleep(WORK).await;
            if done.send(one).is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        loop {
            tokio::select! {
                biased;
                Some((session, phase)) = ended.recv() => peer.end(session, phase).await,
                Some(control) = controls.next() => peer.obey(&control).await,
                Some(message) = news.next() => match habit {
                    Habit::Targets | Habit::Once => peer.offered(&message).await,
                    Habit::Start => peer.started(&message).await,
                },
                else => return,
            }
        }
    });
    door
}

impl Peer {
    async fn offered(&mut self, message: &Message) {
        let Some((session, _)) = self.prefix.parse(&message.subject) else { return };
        let Ok(target) = TargetMessage::parse(&message.body) else { return };
        self.begin(session, target.phase).await;
    }

    async fn started(&mut self, message: &Message) {
        let Some((session, _)) = self.prefix.parse(&message.subject) else { return };
        let Ok(start) = StartMessage::parse(&message.body) else { return };
        if start.revision == Some(self.revision) {
            return;
        }
        self.revision = start.revision.unwrap_or_default();
        for phase in start.manifest.iter().filter_map(|phase| phase["id"].as_str()) {
            self.begin(session.clone(), PhaseId::new(phase).expect("the operator checked it")).await;
        }
    }

    /// What it knows it says again; what it does not know it does.
    async fn begin(&mut self, session: SessionId, phase: PhaseId) {
        if let Some(status) = self.known.get(&(session.clone(), phase.clone())) {
            if self.habit != Habit::Once {
                self.say(&session, &phase, *status).await;
            }
            return;
        }
        self.shared.trace.note(format_args!("{} begins {phase}", self.door));
        let (runtime, of) = (self.door.name().to_owned(), session.as_str().to_owned());
        let executed = Executed { runtime, session: of, phase: phase.to_string(), token: None };
        self.shared.judged(self.shared.checks.begins(executed));
        self.known.insert((session.clone(), phase.clone()), ReportStatus::Running);
        let _ = self.queue.send((session.clone(), phase.clone()));
        if self.revision == 0 {
            self.say(&session, &phase, ReportStatus::Running).await;
        }
    }

    async fn end(&mut self, session: SessionId, phase: PhaseId) {
        if self.revision > 0 {
            self.say(&session, &phase, ReportStatus::Running).await;
        }
        self.known.insert((session.clone(), phase.clone()), ReportStatus::Complete);
        self.say(&session, &phase, ReportStatus::Complete).await;
    }

    async fn obey(&mut self, message: &Message) {
        let Some((session, _)) = self.prefix.parse(&message.subject) else { return };
        let Ok(control) = ControlMessage::parse(&message.body) else { return };
        if control.command != Command::Report || self.habit != Habit::Start {
            return;
        }
        for ((of, phase), status) in self.known.clone() {
            if of == session && status == ReportStatus::Complete {
                self.say(&session, &phase, status).await;
            }
        }
    }

    async fn say(&self, session: &SessionId, phase: &PhaseId, status: ReportStatus) {
        let state = StateMessage {
            phase: phase.clone(),
            status,
            updated: None,
            attempt: None,
            runtime: None,
            progress: None,
            message: None,
            retryable: None,
            retry_after: None,
            heartbeat: None,
        };
        let message = Message::new(self.prefix.subject(session, Channel::State), state.to_bytes());
        if self.habit == Habit::Once {
            // The link is down for a while at most, and up whenever nobody is left to hear that it ended.
            let _ = self.bus.link().wait_for(Link::is_connected).await;
        }
        // It has no memory of what was not taken.
        let _ = self.bus.publish(message).await;
    }
}
