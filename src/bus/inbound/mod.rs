//! What the operator hears: one pump per connection and process, from subjects to the sessions that registered.
//!
//! The pump reads, parses and hands on; it never waits for a session and does no IO, because a pump that stops makes the
//! client drop messages. A session whose queue is full loses messages and is told so ([`Arrival::Missed`]). Whether all
//! subscriptions are live is proved anew after every connect before [`Ready`] says so: sessions wait for that, then ask
//! their runtimes who holds what, and only then offer.

mod readiness;
mod routes;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures::{StreamExt, stream};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use self::routes::Routes;
use super::{Bus, Error, Message, Subscription};
use crate::protocol::{AckMessage, Channel, ControlMessage, Prefix, SessionId, StateMessage};

/// What the operator listens to. `start` is not among them: submissions come with their own setting.
pub const CHANNELS: [Channel; 5] = [Channel::Ack, Channel::State, Channel::Control, Channel::GetState, Channel::Diff];

/// Starts the pump; see [`Inbound::run`].
pub struct Inbound;

/// The running pump. Cloning is a reference count; the pump ends with the last clone.
#[derive(Clone)]
pub struct InboundHandle {
    routes: Arc<Routes>,
    ready: watch::Receiver<Ready>,
    _tasks: Arc<Tasks>,
}

/// Whether everything that the operator listens to is known to be heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// All subscriptions were proved in this epoch of the link. Another epoch than the last one means: ask again.
    Yes { epoch: u64 },
    /// `reason` is [`Error::reason`] (`PermissionDenied`, ...), `message` is for people.
    No { reason: &'static str, message: String },
}

impl Ready {
    /// The epoch, if ready.
    pub fn epoch(&self) -> Option<u64> {
        match self {
            Self::Yes { epoch } => Some(*epoch),
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
}

impl InboundMessage {
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

/// What a [`Sink`] gives.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrival {
    Message(Box<InboundMessage>),
    /// Messages were lost because the queue was full: ask again for what they may have said.
    Missed,
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
}

/// The messages of one session, in order. Dropping it ends the registration.
pub struct Sink {
    routes: Arc<Routes>,
    /// `None` for the rest.
    session: Option<SessionId>,
    id: u64,
    receiver: mpsc::Receiver<Box<InboundMessage>>,
    missed: Arc<AtomicBool>,
}

impl Inbound {
    /// Subscribes to [`CHANNELS`] of all sessions under the prefix and starts to pump and to prove.
    ///
    /// `origin` is what our own messages carry in `Pmp-Origin`. Answers at once, connected or not; fails only if the
    /// connection is closed or takes no subscription for [`super::CALL_TIMEOUT`].
    pub async fn run(bus: Bus, prefix: Prefix, origin: impl Into<String>) -> Result<InboundHandle, Error> {
        let mut subscriptions = Vec::new();
        for channel in CHANNELS {
            subscriptions.push(bus.subscribe(&prefix.pattern(channel), None).await?);
        }
        let routes = Arc::new(Routes::new(prefix, origin.into()));
        let not_yet = Ready::No { reason: "BusDisconnected", message: "not connected yet".to_owned() };
        let (ready_to, ready) = watch::channel(not_yet);
        let tasks = [
            tokio::spawn(pump(subscriptions, routes.clone())),
            tokio::spawn(readiness::prove(bus, routes.clone(), ready_to)),
        ];
        Ok(InboundHandle { routes, ready, _tasks: Arc::new(Tasks(tasks)) })
    }
}

impl InboundHandle {
    /// Takes over the messages of this session; who had them before reads the end.
    pub fn register(&self, session: &SessionId) -> Sink {
        self.routes.register(Some(session.clone()))
    }

    /// Takes over the messages of all sessions that nobody registered: requests about finished ones, commands for those
    /// that do not run.
    pub fn register_rest(&self) -> Sink {
        self.routes.register(None)
    }

    /// Changes at every proof and every loss of one.
    pub fn ready(&self) -> watch::Receiver<Ready> {
        self.ready.clone()
    }

    pub fn counters(&self) -> Counters {
        self.routes.counters()
    }
}

impl Sink {
    /// The next arrival; `None` when another took the session over or the pump ended. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Option<Arrival> {
        // The flag is raised only while the queue is full, so whoever reads on comes by here.
        if self.missed.swap(false, Ordering::AcqRel) {
            return Some(Arrival::Missed);
        }
        self.receiver.recv().await.map(Arrival::Message)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.routes.forget(self.session.as_ref(), self.id);
    }
}

struct Tasks([JoinHandle<()>; 2]);

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// Messages with their probes, as a stream.
fn raw(mut subscription: Subscription) -> impl stream::Stream<Item = Message> + Unpin {
    stream::poll_fn(move |cx| subscription.poll_raw(cx))
}

async fn pump(subscriptions: Vec<Subscription>, routes: Arc<Routes>) {
    let _end = EndOfSinks(&routes);
    let mut messages = stream::select_all(subscriptions.into_iter().map(raw));
    while let Some(message) = messages.next().await {
        routes.route(message);
    }
}

/// Lets every sink read its end, however the pump ends.
struct EndOfSinks<'a>(&'a Routes);

impl Drop for EndOfSinks<'_> {
    fn drop(&mut self) {
        self.0.forget_all();
    }
}
