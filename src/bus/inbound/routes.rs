//! Where a message goes: from its subject and its body to the sink of its session. No waiting, no IO.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{Arrival, Counters, Hearing, InboundBody, InboundMessage, Origin, Place, Sink, twins::Print};
use crate::{
    bus::{Bus, Message, Position, Stored},
    protocol::{AckMessage, Channel, ControlMessage, MessageError, Prefix, SessionId, StateMessage, headers},
};

/// Messages that wait for one session; at the most a session has two for each phase in flight.
const SINK_MESSAGES_MAX: usize = 4096;

/// Sessions that read the past at a time. Each has a consumer of its own meanwhile.
const READERS_MAX: usize = 32;

/// Longest name kept of whoever speaks.
const NAME_CHARS_MAX: usize = 128;

#[derive(Default)]
struct AtomicCounters {
    received: AtomicU64,
    misdirected: AtomicU64,
    malformed: AtomicU64,
    unclaimed: AtomicU64,
    missed: AtomicU64,
    own: AtomicU64,
    foreign: AtomicU64,
    made_good: AtomicU64,
}

/// What a message is to the pump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Comes twice where reports are kept.
    Report,
    Command,
    /// Comes once, or is nobody's: requests, acks, probes, our own words.
    Other,
}

pub(super) struct Routes {
    origin: String,
    pub(super) prefix: Prefix,
    sinks: Mutex<Sinks>,
    /// Probes that are out, by their nonce.
    probes: Mutex<HashMap<String, oneshot::Sender<()>>>,
    /// Up to here the stream was read, and everything stands in its queue.
    reached: Mutex<Option<Position>>,
    /// Of those who read the past: a stream has room for a thousand consumers, and ten thousand sessions may begin at once.
    pub(super) turns: Arc<Semaphore>,
    counters: AtomicCounters,
}

#[derive(Default)]
struct Sinks {
    next_id: u64,
    /// In an order, so that a simulation can be replayed.
    sessions: BTreeMap<SessionId, Entry>,
    rest: Option<Entry>,
}

struct Entry {
    id: u64,
    sender: mpsc::Sender<Arrival>,
    missed: Arc<AtomicBool>,
}

impl Routes {
    pub(super) fn new(prefix: Prefix, origin: String) -> Self {
        Self {
            origin,
            prefix,
            sinks: Mutex::default(),
            probes: Mutex::default(),
            reached: Mutex::default(),
            turns: Arc::new(Semaphore::new(READERS_MAX)),
            counters: AtomicCounters::default(),
        }
    }

    pub(super) fn counters(&self) -> Counters {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        Counters {
            received: count(&counters.received),
            misdirected: count(&counters.misdirected),
            malformed: count(&counters.malformed),
            unclaimed: count(&counters.unclaimed),
            missed: count(&counters.missed),
            own: count(&counters.own),
            foreign: count(&counters.foreign),
            made_good: count(&counters.made_good),
        }
    }

    /// Ends a registration, unless another has taken it over. What nobody has read of it goes to whoever has the session
    /// now, before anything that comes later.
    pub(super) fn forget(&self, session: Option<&SessionId>, id: u64, receiver: &mut mpsc::Receiver<Arrival>) {
        let mut sinks = self.sinks();
        match session {
            Some(session) if sinks.sessions.get(session).is_some_and(|entry| entry.id == id) => {
                sinks.sessions.remove(session);
            }
            None if sinks.rest.as_ref().is_some_and(|entry| entry.id == id) => sinks.rest = None,
            _ => {}
        }
        receiver.close();
        while let Ok(arrival) = receiver.try_recv() {
            if let Arrival::Message(message) = arrival {
                self.hand_on(&sinks, *message);
            }
        }
    }

    /// Lets every sink read its end.
    pub(super) fn forget_all(&self) {
        let mut sinks = self.sinks();
        sinks.sessions.clear();
        sinks.rest = None;
    }

    /// Every entry stands alone, so a panic elsewhere leaves nothing half done.
    fn sinks(&self) -> MutexGuard<'_, Sinks> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn probes(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<()>>> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn register(self: &Arc<Self>, bus: Bus, session: Option<SessionId>) -> Sink {
        let (sender, receiver) = mpsc::channel(SINK_MESSAGES_MAX);
        let missed = Arc::new(AtomicBool::new(false));
        let drained = self.reached().map_or(0, |reached| reached.sequence);
        let mut sinks = self.sinks();
        sinks.next_id += 1;
        let id = sinks.next_id;
        let entry = Entry { id, sender, missed: missed.clone() };
        match &session {
            Some(session) => drop(sinks.sessions.insert(session.clone(), entry)),
            None => sinks.rest = Some(entry),
        }
        drop(sinks);
        Sink {
            routes: self.clone(),
            bus,
            session,
            id,
            receiver,
            missed,
            past: None,
            twins: HashMap::new(),
            twins_within: 0,
            given: None,
            drained,
            is_behind: false,
        }
    }

    // === the stream ===

    pub(super) fn reached(&self) -> Option<Position> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The stream is read from behind this place on.
    pub(super) fn reach(&self, position: Position) {
        *self.reached.lock().unwrap_or_else(PoisonError::into_inner) = Some(position);
    }

    /// The same stream was read this far.
    pub(super) fn reach_on(&self, sequence: u64) {
        if let Some(reached) = &mut *self.reached.lock().unwrap_or_else(PoisonError::into_inner) {
            reached.sequence = sequence;
        }
    }

    /// Nobody knows what was lost, so everybody asks again.
    pub(super) fn miss_all(&self) {
        let sinks = self.sinks();
        for entry in sinks.sessions.values().chain(&sinks.rest) {
            if entry.sender.try_send(Arrival::Missed).is_err() {
                entry.missed.store(true, Ordering::Release);
            }
        }
    }

    /// A message that the stream brought and nobody heard before.
    pub(super) fn make_good(&self, message: Message, place: Option<Place>) {
        count(&self.counters.made_good);
        self.route(message, place);
    }

    /// A message from before its session was registered here, out of this stream; nothing for what is no session's to hear.
    pub(super) fn read_past(&self, stored: Stored, of: &Position) -> Option<InboundMessage> {
        let Stored { sequence, at, message } = stored;
        let kind = self.kind(&message);
        if kind == Kind::Other {
            return None;
        }
        let position = || Position { stream: of.stream.clone(), created: of.created, sequence };
        let place = (kind == Kind::Command).then(|| Place { position: position(), at, hearing: Hearing::Late });
        self.read(message, place)
    }

    // === messages ===

    pub(super) fn kind(&self, message: &Message) -> Kind {
        if message.headers.get(headers::PROBE).is_some() || message.headers.get(headers::ORIGIN) == Some(&self.origin) {
            return Kind::Other;
        }
        match self.prefix.parse(&message.subject) {
            Some((_, Channel::State)) => Kind::Report,
            Some((_, Channel::Control)) => Kind::Command,
            _ => Kind::Other,
        }
    }

    pub(super) fn route(&self, message: Message, place: Option<Place>) {
        if let Some(nonce) = message.headers.get(headers::PROBE) {
            if let Some(probe) = self.probes().remove(nonce) {
                // Whoever waited may have given up in this moment.
                let _ = probe.send(());
            }
            return;
        }
        count(&self.counters.received);
        if let Some(message) = self.read(message, place) {
            self.hand_on(&self.sinks(), message);
        }
    }

    fn read(&self, message: Message, place: Option<Place>) -> Option<InboundMessage> {
        let Some((session, channel)) = self.prefix.parse(&message.subject) else {
            count(&self.counters.misdirected);
            return None;
        };
        let body = match read(channel, &message.body) {
            Ok(Some(body)) => body,
            Ok(None) => {
                count(&self.counters.misdirected);
                return None;
            }
            Err(error) => {
                tracing::debug!(%session, %channel, %error, "dropped a message");
                count(&self.counters.malformed);
                return None;
            }
        };
        let origin = self.origin_of(&message);
        match origin {
            Origin::None => {}
            Origin::Own | Origin::Holder(_) => count(&self.counters.own),
            Origin::Foreign(_) => count(&self.counters.foreign),
        }
        let traceparent = message.headers.get(headers::TRACEPARENT).map(str::to_owned);
        let print = matches!(channel, Channel::State | Channel::Control).then(|| Print::of(&message));
        Some(InboundMessage { session, origin, body, reply: message.reply, traceparent, place, print })
    }

    fn origin_of(&self, message: &Message) -> Origin {
        match message.headers.get(headers::ORIGIN) {
            None => Origin::None,
            Some(origin) if origin == self.origin => match message.headers.get(headers::HOLDER) {
                None => Origin::Own,
                Some(name) => Origin::Holder(name.chars().take(NAME_CHARS_MAX).collect()),
            },
            Some(origin) => Origin::Foreign(origin.chars().take(NAME_CHARS_MAX).collect()),
        }
    }

    fn hand_on(&self, sinks: &Sinks, message: InboundMessage) {
        let Some(entry) = sinks.sessions.get(&message.session).or(sinks.rest.as_ref()) else {
            return count(&self.counters.unclaimed);
        };
        match entry.sender.try_send(Arrival::Message(Box::new(message))) {
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
