//! What the operator hears: one pump per connection and process, from subjects to the sessions that registered.
//!
//! The pump reads, parses and hands on; it never waits for a session and does no IO, because a pump that stops makes the
//! client drop messages. A session whose queue is full loses messages and is told so ([`Arrival::Missed`]). Whether all
//! subscriptions are live is proved anew after every connect before [`Ready`] says so: sessions wait for that, then ask
//! their runtimes who holds what, and only then offer.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream};
use rand::RngExt;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{Bus, Error, LinkState, Message, Subscription, proof};
use crate::protocol::{AckMessage, Channel, ControlMessage, MessageError, Prefix, SessionId, StateMessage, headers};

/// What the operator listens to. `start` is not among them: submissions come with their own setting.
pub const CHANNELS: [Channel; 5] = [Channel::Ack, Channel::State, Channel::Control, Channel::GetState, Channel::Diff];

/// Messages that wait for one session; at the most a session has two for each phase in flight.
const SINK_MESSAGES_MAX: usize = 4096;

/// How long a probe may take, and how long to wait before the next try.
const PROOF_TIMEOUT: Duration = Duration::from_secs(5);
const PROOF_RETRY: Duration = Duration::from_secs(2);

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

#[derive(Default)]
struct AtomicCounters {
    received: AtomicU64,
    misdirected: AtomicU64,
    malformed: AtomicU64,
    unclaimed: AtomicU64,
    missed: AtomicU64,
    own: AtomicU64,
    foreign: AtomicU64,
}

struct Routes {
    origin: String,
    prefix: Prefix,
    sinks: Mutex<Sinks>,
    /// Probes that are out, by their nonce.
    probes: Mutex<HashMap<String, oneshot::Sender<()>>>,
    counters: AtomicCounters,
}

#[derive(Default)]
struct Sinks {
    next_id: u64,
    sessions: HashMap<SessionId, Entry>,
    rest: Option<Entry>,
}

struct Entry {
    id: u64,
    sender: mpsc::Sender<Box<InboundMessage>>,
    missed: Arc<AtomicBool>,
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
        let routes = Arc::new(Routes {
            origin: origin.into(),
            prefix,
            sinks: Mutex::default(),
            probes: Mutex::default(),
            counters: AtomicCounters::default(),
        });
        let not_yet = Ready::No { reason: "BusDisconnected", message: "not connected yet".to_owned() };
        let (ready_to, ready) = watch::channel(not_yet);
        let tasks =
            [tokio::spawn(pump(subscriptions, routes.clone())), tokio::spawn(prove(bus, routes.clone(), ready_to))];
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
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.routes.counters;
        Counters {
            received: count(&counters.received),
            misdirected: count(&counters.misdirected),
            malformed: count(&counters.malformed),
            unclaimed: count(&counters.unclaimed),
            missed: count(&counters.missed),
            own: count(&counters.own),
            foreign: count(&counters.foreign),
        }
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
        let mut sinks = self.routes.sinks();
        match &self.session {
            Some(session) if sinks.sessions.get(session).is_some_and(|entry| entry.id == self.id) => {
                sinks.sessions.remove(session);
            }
            None if sinks.rest.as_ref().is_some_and(|entry| entry.id == self.id) => sinks.rest = None,
            _ => {}
        }
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
        let mut sinks = self.0.sinks();
        sinks.sessions.clear();
        sinks.rest = None;
    }
}

impl Routes {
    /// Every entry stands alone, so a panic elsewhere leaves nothing half done.
    fn sinks(&self) -> MutexGuard<'_, Sinks> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn probes(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<()>>> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(self: &Arc<Self>, session: Option<SessionId>) -> Sink {
        let (sender, receiver) = mpsc::channel(SINK_MESSAGES_MAX);
        let missed = Arc::new(AtomicBool::new(false));
        let mut sinks = self.sinks();
        sinks.next_id += 1;
        let id = sinks.next_id;
        let entry = Entry { id, sender, missed: missed.clone() };
        match &session {
            Some(session) => drop(sinks.sessions.insert(session.clone(), entry)),
            None => sinks.rest = Some(entry),
        }
        drop(sinks);
        Sink { routes: self.clone(), session, id, receiver, missed }
    }

    fn route(&self, message: Message) {
        if let Some(nonce) = message.headers.get(headers::PROBE) {
            if let Some(probe) = self.probes().remove(nonce) {
                // Whoever waited may have given up in this moment.
                let _ = probe.send(());
            }
            return;
        }
        count(&self.counters.received);
        let Some((session, channel)) = self.prefix.parse(&message.subject) else {
            return count(&self.counters.misdirected);
        };
        let body = match read(channel, &message.body) {
            Ok(Some(body)) => body,
            Ok(None) => return count(&self.counters.misdirected),
            Err(error) => {
                tracing::debug!(%session, %channel, %error, "dropped a message");
                return count(&self.counters.malformed);
            }
        };
        let origin = self.origin_of(&message);
        match origin {
            Origin::None => {}
            Origin::Own => count(&self.counters.own),
            Origin::Foreign(_) => count(&self.counters.foreign),
        }
        let traceparent = message.headers.get(headers::TRACEPARENT).map(str::to_owned);
        self.hand_on(InboundMessage { session, origin, body, reply: message.reply, traceparent });
    }

    fn origin_of(&self, message: &Message) -> Origin {
        match message.headers.get(headers::ORIGIN) {
            None => Origin::None,
            Some(origin) if origin == self.origin => Origin::Own,
            Some(origin) => Origin::Foreign(origin.chars().take(128).collect()),
        }
    }

    fn hand_on(&self, message: InboundMessage) {
        let sinks = self.sinks();
        let Some(entry) = sinks.sessions.get(&message.session).or(sinks.rest.as_ref()) else {
            return count(&self.counters.unclaimed);
        };
        match entry.sender.try_send(Box::new(message)) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                entry.missed.store(true, Ordering::Release);
                count(&self.counters.missed);
            }
            // The sink is being dropped.
            Err(mpsc::error::TrySendError::Closed(_)) => count(&self.counters.unclaimed),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// `None` for a channel that is not listened to.
fn read(channel: Channel, body: &[u8]) -> Result<Option<InboundBody>, MessageError> {
    Ok(Some(match channel {
        Channel::Ack => InboundBody::Ack(AckMessage::parse(body)?),
        Channel::State => InboundBody::State(StateMessage::parse(body)?),
        Channel::Control => InboundBody::Control(ControlMessage::parse(body)?),
        Channel::GetState => InboundBody::GetState,
        Channel::Diff => InboundBody::Diff,
        Channel::Start | Channel::Log | Channel::Events | Channel::Target => return Ok(None),
    }))
}

/// Proves all subscriptions after every rise of the epoch, and says how it stands.
async fn prove(bus: Bus, routes: Arc<Routes>, ready: watch::Sender<Ready>) {
    let mut link = bus.link();
    loop {
        let seen = link.borrow_and_update().clone();
        let proved = match &seen.state {
            LinkState::Disconnected { reason } => Err(Error::Disconnected { reason: reason.clone() }),
            LinkState::Connected => tokio::select! {
                // What was proved in an epoch that is over is proved again before anyone relies on it.
                biased;
                changed = link.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                proved = prove_all(&bus, &routes) => proved,
            },
        };
        let now = match &proved {
            Ok(()) => Ready::Yes { epoch: seen.epoch },
            Err(error) => Ready::No { reason: error.reason(), message: error.to_string() },
        };
        ready.send_if_modified(|ready| {
            let changed = *ready != now;
            *ready = now;
            changed
        });
        let retry = PROOF_RETRY.mul_f64(rand::rng().random_range(0.5..=1.0));
        let waited = match proved {
            Ok(()) => link.changed().await,
            Err(_) => tokio::time::timeout(retry, link.changed()).await.unwrap_or(Ok(())),
        };
        if waited.is_err() {
            return;
        }
    }
}

/// One probe a channel, all at once.
async fn prove_all(bus: &Bus, routes: &Routes) -> Result<(), Error> {
    let probes = CHANNELS.map(|channel| prove_one(bus, routes, channel));
    futures::future::try_join_all(probes).await.map(drop)
}

async fn prove_one(bus: &Bus, routes: &Routes, channel: Channel) -> Result<(), Error> {
    let (subject, pattern) = (routes.prefix.probe_subject(channel), routes.prefix.pattern(channel));
    let nonce = proof::nonce();
    let (sender, heard) = oneshot::channel();
    routes.probes().insert(nonce.clone(), sender);
    let _forget = Forget { routes, nonce: nonce.clone() };
    bus.publish(proof::probe(&subject, &nonce)).await?;
    let watched = [pattern.clone(), subject];
    tokio::select! {
        biased;
        Ok(()) = heard => Ok(()),
        subject = proof::denial(bus.denied(), &watched) => Err(Error::Denied { subject }),
        () = tokio::time::sleep(PROOF_TIMEOUT) => Err(Error::Unproven { pattern }),
    }
}

/// Takes a probe off the list however its proof ends.
struct Forget<'a> {
    routes: &'a Routes,
    nonce: String,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.routes.probes().remove(&self.nonce);
    }
}
