//! Where a message goes: from its subject and its body to the sink of its session. No waiting, no IO.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::{mpsc, oneshot};

use super::{Counters, InboundBody, InboundMessage, Origin, Sink};
use crate::{
    bus::Message,
    protocol::{AckMessage, Channel, ControlMessage, MessageError, Prefix, SessionId, StateMessage, headers},
};

/// Messages that wait for one session; at the most a session has two for each phase in flight.
const SINK_MESSAGES_MAX: usize = 4096;

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

pub(super) struct Routes {
    origin: String,
    pub(super) prefix: Prefix,
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

impl Routes {
    pub(super) fn new(prefix: Prefix, origin: String) -> Self {
        Self { origin, prefix, sinks: Mutex::default(), probes: Mutex::default(), counters: AtomicCounters::default() }
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
        }
    }

    /// Ends a registration, unless another has taken it over.
    pub(super) fn forget(&self, session: Option<&SessionId>, id: u64) {
        let mut sinks = self.sinks();
        match session {
            Some(session) if sinks.sessions.get(session).is_some_and(|entry| entry.id == id) => {
                sinks.sessions.remove(session);
            }
            None if sinks.rest.as_ref().is_some_and(|entry| entry.id == id) => sinks.rest = None,
            _ => {}
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

    pub(super) fn register(self: &Arc<Self>, session: Option<SessionId>) -> Sink {
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

    pub(super) fn route(&self, message: Message) {
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
