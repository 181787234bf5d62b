//! A runtime that obeys grants: a small model of the SDK's rules, in virtual time and without chance.
//!
//! It asks before it begins, begins once a token, says what it knows whenever it is asked or offered that again, and
//! keeps what ended. What it does with a phase is the scenario's.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures::StreamExt;
use pmp::{
    bus::{Bus, Error, Message},
    engine::{AttemptToken, ReportStatus},
    manifest::PhaseId,
    protocol::{
        AckMessage, Channel, Command, ControlMessage, GrantMessage, Prefix, SessionId, StateMessage, TargetMessage,
    },
};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    bus::Nats,
    checks::Executed,
    world::{Door, Role, Shared},
};

const GRANT_WAIT: Duration = Duration::from_secs(2);
const HEARTBEAT: Duration = Duration::from_secs(10);
const ASK_MAX: Duration = Duration::from_mins(2);
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What happens to an attempt.
#[derive(Debug, Clone, Copy)]
pub enum Act {
    Complete(Duration),
    Fail(Duration),
    /// Goes on until it is told to stop.
    Hang,
}

/// What becomes of a phase, by its id and how often it was begun before.
pub type Script = fn(phase: &str, before: usize) -> Act;

type Key = (SessionId, AttemptToken);

struct Entry {
    phase: PhaseId,
    stage: Stage,
    cancel: CancellationToken,
}

#[derive(Clone, Copy)]
enum Stage {
    Asking,
    Running,
    Ended(ReportStatus),
}

struct Worker {
    door: Door,
    bus: Bus,
    prefix: Prefix,
    script: Script,
    shared: Shared,
    ledger: Mutex<BTreeMap<Key, Entry>>,
}

/// Starts a worker that takes everything; its door.
pub async fn hire(name: &str, nats: &Nats, shared: &Shared, prefix: &Prefix, script: Script) -> Door {
    let door = Door::new(name, Role::Runtime);
    let bus = nats.connect(&door);
    let mut controls = bus.subscribe(&prefix.pattern(Channel::Control), None).await.expect("a legal pattern");
    let mut targets = bus.subscribe(&prefix.pattern(Channel::Target), Some("workers")).await.expect("a legal pattern");
    let (prefix, shared) = (prefix.clone(), shared.clone());
    let worker = Arc::new(Worker { door: door.clone(), bus, prefix, script, shared, ledger: Mutex::default() });
    tokio::spawn(async move {
        loop {
            tokio::select! {
                biased;
                Some(control) = controls.next() => worker.obey(&control).await,
                Some(target) = targets.next() => Worker::consider(&worker, &target).await,
                else => return,
            }
        }
    });
    door
}

impl Worker {
    async fn obey(&self, message: &Message) {
        let Some((session, _)) = self.prefix.parse(&message.subject) else { return };
        let Ok(control) = ControlMessage::parse(&message.body) else { return };
        if control.runtime.as_deref().is_some_and(|name| name != self.door.name()) {
            return;
        }
        let is_meant = |key: &Key, entry: &Entry| {
            key.0 == session
                && control.phase.as_ref().is_none_or(|phase| *phase == entry.phase)
                && control.attempt.as_ref().is_none_or(|token| *token == key.1)
        };
        match control.command {
            Command::Cancel | Command::CancelAttempt => {
                for (_, entry) in self.ledger().iter().filter(|(key, entry)| is_meant(key, entry)) {
                    entry.cancel.cancel();
                }
            }
            Command::Report => {
                let known: Vec<_> = self
                    .ledger()
                    .iter()
                    .filter(|(key, entry)| is_meant(key, entry))
                    .map(|(key, entry)| (key.clone(), entry.phase.clone(), entry.stage))
                    .collect();
                for (key, phase, stage) in known {
                    self.say_known(&key, &phase, stage).await;
                }
            }
            _ => {}
        }
    }

    async fn consider(this: &Arc<Self>, message: &Message) {
        let Some((session, _)) = this.prefix.parse(&message.subject) else { return };
        let Ok(target) = TargetMessage::parse(&message.body) else { return };
        let Some(token) = target.attempt else { return };
        let key = (session, token);
        let known = this.ledger().get(&key).map(|entry| entry.stage);
        if let Some(stage) = known {
            return this.say_known(&key, &target.phase, stage).await;
        }
        let cancel = CancellationToken::new();
        let entry = Entry { phase: target.phase.clone(), stage: Stage::Asking, cancel: cancel.clone() };
        this.ledger().insert(key.clone(), entry);
        tokio::spawn(Arc::clone(this).attend(key, target.phase, cancel));
    }

    async fn attend(self: Arc<Self>, key: Key, phase: PhaseId, cancel: CancellationToken) {
        if !self.is_granted(&key, &phase).await {
            self.ledger().remove(&key);
            return;
        }
        self.set(&key, Stage::Running);
        let status = if cancel.is_cancelled() { ReportStatus::Failed } else { self.run(&key, &phase, cancel).await };
        if status == ReportStatus::Failed && !self.door.is_shut() {
            self.shared.checks.failed(key.1.as_str());
        }
        self.set(&key, Stage::Ended(status));
        let mut pause = PAUSE_FIRST;
        while self.say(&key, &phase, status).await.is_err() {
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// An answer that got lost is asked for again: it may have been yes.
    async fn is_granted(&self, key: &Key, phase: &PhaseId) -> bool {
        let (until, mut pause) = (Instant::now() + ASK_MAX, PAUSE_FIRST);
        while Instant::now() < until {
            let ack = AckMessage {
                phase: phase.clone(),
                accepted: true,
                queued: false,
                attempt: Some(key.1.clone()),
                runtime: Some(self.door.name().to_owned()),
                heartbeat: Some(HEARTBEAT),
                reason: None,
                now: None,
            };
            let message = Message::new(self.prefix.subject(&key.0, Channel::Ack), ack.to_bytes());
            match self.bus.request(message, GRANT_WAIT).await {
                Ok(reply) => return GrantMessage::parse(&reply.body).is_ok_and(|grant| grant.granted),
                // Nobody hears it now; but an answer that was lost before may have been yes, and who gave it may come back.
                Err(_) => sleep(pause).await,
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
        false
    }

    async fn run(&self, key: &Key, phase: &PhaseId, cancel: CancellationToken) -> ReportStatus {
        let before = self.shared.checks.times_executed(phase.as_str());
        let act = (self.script)(phase.as_str(), before);
        self.shared.trace.note(format_args!("{} begins {phase} ({act:?})", self.door));
        let (session, token) = (key.0.as_str().to_owned(), Some(key.1.to_string()));
        let executed = Executed { runtime: self.door.name().to_owned(), session, phase: phase.to_string(), token };
        self.shared.judged(self.shared.checks.begins(executed));
        let (status, length) = match act {
            Act::Complete(length) => (ReportStatus::Complete, length),
            Act::Fail(length) => (ReportStatus::Failed, length),
            Act::Hang => (ReportStatus::Failed, Duration::from_hours(24)),
        };
        let end = Instant::now() + length;
        loop {
            // What is lost is said again by the next heartbeat.
            let _ = self.say(key, phase, ReportStatus::Running).await;
            tokio::select! {
                biased;
                () = cancel.cancelled() => return ReportStatus::Failed,
                () = sleep_until(end) => return status,
                () = sleep(HEARTBEAT) => {}
            }
        }
    }

    async fn say_known(&self, key: &Key, phase: &PhaseId, stage: Stage) {
        let status = match stage {
            Stage::Asking => return,
            Stage::Running => ReportStatus::Running,
            Stage::Ended(status) => status,
        };
        // Whoever asks once asks again.
        let _ = self.say(key, phase, status).await;
    }

    async fn say(&self, key: &Key, phase: &PhaseId, status: ReportStatus) -> Result<(), Error> {
        let state = StateMessage {
            phase: phase.clone(),
            status,
            updated: None,
            attempt: Some(key.1.clone()),
            runtime: Some(self.door.name().to_owned()),
            progress: None,
            message: None,
            retryable: None,
            retry_after: None,
            heartbeat: Some(HEARTBEAT),
        };
        self.bus.publish(Message::new(self.prefix.subject(&key.0, Channel::State), state.to_bytes())).await
    }

    fn set(&self, key: &Key, stage: Stage) {
        self.ledger().get_mut(key).expect("it was asked for").stage = stage;
    }

    fn ledger(&self) -> MutexGuard<'_, BTreeMap<Key, Entry>> {
        self.ledger.lock().expect("nobody panics while holding it")
    }
}
