//! What one session hears: the past from where it was told to begin, then what comes.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::StreamExt;
use tokio::sync::mpsc;

use super::{InboundMessage, routes::Routes, twins::Print};
use crate::{
    bus::{Begin, Bus, Error, Position, Reading},
    protocol::{Channel, SessionId},
};

/// What a [`Sink`] gives.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrival {
    Message(Box<InboundMessage>),
    /// Messages were lost, in a full queue or by the stream: ask again for what they may have said.
    Missed,
    /// All of the past was given that [`Sink::catch_up`] promised, or as much as could be read.
    CaughtUp,
}

/// The messages of one session, in order. Dropping it ends the registration.
pub struct Sink {
    pub(super) routes: Arc<Routes>,
    pub(super) bus: Bus,
    /// `None` for the rest.
    pub(super) session: Option<SessionId>,
    pub(super) id: u64,
    pub(super) receiver: mpsc::Receiver<Arrival>,
    pub(super) missed: Arc<AtomicBool>,
    pub(super) past: Option<Past>,
    /// Messages of the past that are in the queue, too, and how many of the queue may be such.
    pub(super) twins: HashMap<Print, u32>,
    pub(super) twins_within: usize,
    /// Up to here everything was given.
    pub(super) given: Option<Position>,
    /// There is more behind that place, and it was not asked for yet.
    pub(super) is_behind: bool,
}

/// Messages from before the registration.
pub(super) struct Past {
    reading: Reading,
    left: u64,
}

impl Sink {
    /// The next arrival; `None` when another took the session over or the pump ended. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Option<Arrival> {
        while let Some(past) = &mut self.past {
            let read = if past.left == 0 { None } else { past.reading.messages.next().await };
            let Some(Ok(stored)) = read else {
                // A reading that broke off is begun again behind the same place.
                self.is_behind = past.left > 0;
                self.past = None;
                self.twins_within = self.receiver.len();
                return Some(Arrival::CaughtUp);
            };
            past.left -= 1;
            let print = Print::of(&stored.message);
            *self.twins.entry(print).or_default() += 1;
            if let Some(message) = self.routes.read_past(stored)
                && self.session.as_ref() == Some(&message.session)
            {
                return Some(Arrival::Message(Box::new(message)));
            }
        }
        loop {
            // The flag is raised only while the queue is full, so whoever reads on comes by here.
            if self.missed.swap(false, Ordering::AcqRel) {
                return Some(Arrival::Missed);
            }
            let arrival = self.receiver.recv().await?;
            if !self.is_twin(&arrival) {
                return Some(arrival);
            }
        }
    }

    fn is_twin(&mut self, arrival: &Arrival) -> bool {
        if self.twins_within == 0 {
            return false;
        }
        self.twins_within -= 1;
        let Arrival::Message(message) = arrival else { return false };
        let count = message.print.and_then(|print| self.twins.get_mut(&print)).filter(|count| **count > 0);
        let is_twin = count.map(|count| *count -= 1).is_some();
        if self.twins_within == 0 {
            self.twins = HashMap::new();
        }
        is_twin
    }

    /// What is known already: everything in the stream up to this place.
    #[must_use]
    pub fn since(mut self, place: Option<Position>) -> Self {
        self.is_behind = place.is_some();
        self.given = place;
        self
    }

    /// Gives next what the stream has of this session behind [`Self::since`]; how many messages that is.
    ///
    /// Nothing if the stream is another one by now, or all was given. Two calls to the server, each within
    /// [`crate::bus::CALL_TIMEOUT`]; after an error it can be asked for again.
    pub async fn catch_up(&mut self) -> Result<u64, Error> {
        let (Some(since), Some(session), true) = (&self.given, &self.session, self.is_behind) else { return Ok(0) };
        let Some(storage) = self.bus.storage() else { return Ok(0) };
        let facts = storage.facts(&since.stream).await?;
        if facts.created != since.created || facts.last <= since.sequence {
            self.is_behind = false;
            return Ok(0);
        }
        let prefix = &self.routes.prefix;
        let patterns = [Channel::State, Channel::Control].map(|channel| prefix.subject(session, channel));
        let reading = storage.read(&since.stream, &patterns, Begin::Sequence(since.sequence + 1)).await?;
        let left = reading.pending;
        self.is_behind = false;
        if left > 0 {
            self.past = Some(Past { reading, left });
        }
        Ok(left)
    }

    /// Whether there is more of the past than was given: [`Self::catch_up`] asks for it.
    pub fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Whether the past is still being given.
    pub fn is_catching_up(&self) -> bool {
        self.past.is_some()
    }

    /// The place in the stream up to which everything was given; nothing where the bus keeps nothing, or not yet.
    ///
    /// To be asked when all that [`Self::next`] gave is dealt with: it is stored beside what came of it.
    pub fn position(&mut self) -> Option<&Position> {
        // The place is read before the queue is looked at: what stands before it was put there before it was noted.
        let reached = self.routes.reached();
        let is_up_to_date = self.past.is_none() && !self.is_behind && self.receiver.is_empty();
        if is_up_to_date && reached.is_some() {
            self.given = reached;
        }
        self.given.as_ref()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.routes.forget(self.session.as_ref(), self.id);
    }
}
