//! What the operator hears: one pump per connection and process, from subjects to the sessions that registered.
//!
//! The pump reads, parses and hands on; it never waits for a session and does no IO, because a pump that stops makes the
//! client drop messages. A session whose queue is full loses messages and is told so ([`Arrival::Missed`]). Whether all
//! subscriptions are live is proved anew after every connect before [`Ready`] says so: sessions wait for that, then ask
//! their runtimes who holds what, and only then offer.
//!
//! Where the bus keeps messages (JetStream), reports are read from their stream, too: `reports` reads, `twins` sees to it
//! that each is heard once. Nothing live depends on it; it brings what was sent while nobody listened.

mod pump;
mod readiness;
mod renewal;
mod reports;
mod routes;
mod sink;
mod trouble;
mod twins;

use std::{future::pending, sync::Arc};

use futures::StreamExt as _;
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

use self::{renewal::Renewals, routes::Routes, twins::Print};
pub use self::{
    reports::Keeping,
    sink::{Arrival, Sink},
    trouble::Trouble,
};
use super::{Begin, Bus, CALL_TIMEOUT, Error, Position, streams};
use crate::protocol::{AckMessage, Channel, ControlMessage, Prefix, SessionId, StateMessage};

/// What the operator listens to. `start` is not among them: submissions come with their own setting.
pub const CHANNELS: [Channel; 5] = [Channel::Ack, Channel::State, Channel::Control, Channel::GetState, Channel::Diff];

/// Messages from the stream that wait for the pump.
const FROM_STREAM_MAX: usize = 1024;

/// Starts the pump; see [`Inbound::run`].
pub struct Inbound;

/// The running pump. Cloning is a reference count; the pump ends with the last clone.
#[derive(Clone)]
pub struct InboundHandle {
    bus: Bus,
    routes: Arc<Routes>,
    ready: watch::Receiver<Ready>,
    ended: watch::Receiver<Option<&'static str>>,
    _tasks: Arc<Tasks>,
}

/// Whether everything that the operator listens to is known to be heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// All subscriptions were proved in this epoch of the link. Another epoch than the last one means: ask again.
    /// `troubles` are what is wrong nevertheless.
    Yes { epoch: u64, keeping: Keeping, troubles: Arc<[Trouble]> },
    /// `reason` is [`Error::reason`] (`PermissionDenied`, ...), `message` is for people.
    No { reason: &'static str, message: String },
}

impl Ready {
    /// The epoch, if ready.
    pub fn epoch(&self) -> Option<u64> {
        match self {
            Self::Yes { epoch, .. } => Some(*epoch),
            Self::No { .. } => None,
        }
    }
}

/// One message, taken apart and read.
#[derive(Debug, Clone, PartialEq)]
pub struct InboundMessage {
    pub session: SessionId,
    pub origin: Origin,
    pub body: InboundBody,
    /// Where the sender waits for an answer.
    pub reply: Option<String>,
    /// As the sender gave it.
    pub traceparent: Option<String>,
    /// Of a command that the stream has: its name for good.
    pub place: Option<Place>,
    /// Of what the stream may give out, too.
    print: Option<Print>,
}

/// Where and when a message was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub position: Position,
    /// By the server's clock.
    pub at: Timestamp,
    pub hearing: Hearing,
}

/// When a message was heard that the stream has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hearing {
    /// As it was said.
    Live,
    /// From the stream only, some time after it was said.
    Late,
    /// As it was said, and it was passed on then; only its place is news.
    Before,
}

impl InboundMessage {
    /// A message that asks for no answer.
    pub fn new(session: SessionId, origin: Origin, body: InboundBody) -> Self {
        Self { session, origin, body, reply: None, traceparent: None, place: None, print: None }
    }

    pub fn channel(&self) -> Channel {
        match self.body {
            InboundBody::Ack(_) => Channel::Ack,
            InboundBody::State(_) => Channel::State,
            InboundBody::Control(_) => Channel::Control,
            InboundBody::GetState => Channel::GetState,
            InboundBody::Diff => Channel::Diff,
        }
    }
}

/// Whose message it is (design, "Origins"): with any origin it is never a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A runtime's or a client's.
    None,
    /// This cluster's: our own, heard again.
    Own,
    /// This cluster's, from whoever holds the session or believes so: its name, perhaps our own.
    Holder(String),
    /// Another operator's.
    Foreign(String),
}

/// What was said. The bodies of requests are not looked at.
#[derive(Debug, Clone, PartialEq)]
pub enum InboundBody {
    Ack(AckMessage),
    State(StateMessage),
    Control(ControlMessage),
    GetState,
    Diff,
}

/// What the pump did, since it began. For metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    pub received: u64,
    /// Subjects that are not ours to read, such as an illegal session id.
    pub misdirected: u64,
    pub malformed: u64,
    /// For sessions that nobody registered.
    pub unclaimed: u64,
    /// Lost because a session's queue was full.
    pub missed: u64,
    pub own: u64,
    pub foreign: u64,
    /// Heard from the stream only: missed at first, or sent while nobody was here.
    pub made_good: u64,
}

impl Inbound {
    /// Subscribes to [`CHANNELS`] of all sessions under the prefix and starts to pump and to prove.
    ///
    /// `origin` is what our own messages carry in `Pmp-Origin`. Answers at once, connected or not; fails only if the
    /// connection is closed or takes no subscription for [`super::CALL_TIMEOUT`].
    pub async fn run(bus: Bus, prefix: Prefix, origin: impl Into<String>) -> Result<InboundHandle, Error> {
        let (subscriptions, renewals) = Renewals::subscribe(&bus, &prefix).await?;
        let routes = Arc::new(Routes::new(prefix.clone(), origin.into()));
        let not_yet = Ready::No { reason: "BusDisconnected", message: "not connected yet".to_owned() };
        let (ready_to, ready) = watch::channel(not_yet);
        let (keeping_to, keeping) = watch::channel((0, Keeping::Unknown));
        let (stored_to, stored) = mpsc::channel(FROM_STREAM_MAX);
        let (ended_to, ended) = watch::channel(None);
        let reader = reports::read(bus.clone(), prefix, stored_to, keeping_to);
        let has_streams = bus.storage().is_some();
        let reader = async move {
            reader.await;
            if !has_streams {
                // There is nothing to read, ever.
                pending::<()>().await;
            }
        };
        let tasks = [
            spawn_watched("the pump", &ended_to, pump::run(subscriptions, stored, routes.clone(), keeping.clone())),
            spawn_watched("the reader of reports", &ended_to, reader),
            spawn_watched(
                "the proof of subscriptions",
                &ended_to,
                readiness::prove(bus.clone(), routes.clone(), keeping, ready_to, renewals),
            ),
        ];
        Ok(InboundHandle { bus, routes, ready, ended, _tasks: Arc::new(Tasks(tasks)) })
    }
}

impl InboundHandle {
    /// Takes over the messages of this session; who had them before reads the end.
    pub fn register(&self, session: &SessionId) -> Sink {
        self.routes.register(self.bus.clone(), Some(session.clone()))
    }

    /// Takes over the messages of all sessions that nobody registered: requests about finished ones, commands for those
    /// that do not run.
    pub fn register_rest(&self) -> Sink {
        self.routes.register(self.bus.clone(), None)
    }

    /// All commands that the stream of reports has, of every session, in their order: some came while nobody listened.
    ///
    /// Two calls to the server and a reading that may take a second for each 100,000 of them.
    pub async fn kept_commands(&self) -> Result<Vec<InboundMessage>, Error> {
        let Some(storage) = self.bus.storage() else { return Ok(Vec::new()) };
        let prefix = &self.routes.prefix;
        let facts = storage.facts(&streams::reports(prefix).name).await?;
        let patterns = [prefix.pattern(Channel::Control)];
        let mut reading = storage.read(&facts.name, &patterns, Begin::Sequence(1)).await?;
        let place = Position { stream: facts.name, created: facts.created, sequence: 0 };
        let mut commands = Vec::new();
        for _ in 0..reading.pending {
            // Nothing more comes where the rest was removed meanwhile.
            let Ok(Some(stored)) = timeout(CALL_TIMEOUT, reading.messages.next()).await else { break };
            commands.extend(self.routes.read_past(stored?, &place).filter(|message| message.origin == Origin::None));
        }
        Ok(commands)
    }

    /// Changes at every proof and every loss of one.
    pub fn ready(&self) -> watch::Receiver<Ready> {
        self.ready.clone()
    }

    pub fn counters(&self) -> Counters {
        self.routes.counters()
    }

    /// Waits until a part of it ends by itself, by a panic or with the bus, and names it: from then on nobody may rely on
    /// hearing anything.
    pub async fn ended(&self) -> &'static str {
        match self.ended.clone().wait_for(Option::is_some).await {
            Ok(ended) => ended.unwrap_or("the pump"),
            Err(_) => "the pump",
        }
    }
}

/// Tells when the task ends, however it does.
fn spawn_watched(
    name: &'static str,
    ended: &watch::Sender<Option<&'static str>>,
    task: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let end = TellEnd { name, ended: ended.clone() };
    tokio::spawn(async move {
        let _end = end;
        task.await;
    })
}

struct TellEnd {
    name: &'static str,
    ended: watch::Sender<Option<&'static str>>,
}

impl Drop for TellEnd {
    fn drop(&mut self) {
        self.ended.send_if_modified(|ended| ended.is_none() && ended.replace(self.name).is_none());
    }
}

struct Tasks([JoinHandle<()>; 3]);

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_panics_is_named() {
        let (ended_to, mut ended) = watch::channel(None);
        let _waits = spawn_watched("one that goes on", &ended_to, pending());
        let _panics = spawn_watched("the pump", &ended_to, async { panic!("a defect") });
        assert_eq!(*ended.wait_for(Option::is_some).await.unwrap(), Some("the pump"));
    }
}
