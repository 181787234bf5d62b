//! What the server keeps: streams and who reads along, by the rules of JetStream that the product builds upon. No waiting
//! and no chance; the time is an argument.
//!
//! `tests/it/bus/streams.rs` holds it to a real server, through the calls of `storage`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use pmp::bus::{Begin, Error, Message, Stored, StreamFacts, StreamWish};
use tokio::{sync::mpsc, time::Instant};

use super::matches;

/// What a reading gives, and when it comes out of the wire.
pub type Said = (Instant, Result<Stored, Error>);

/// All streams of a server.
#[derive(Default)]
pub struct Streams {
    by_name: BTreeMap<String, Kept>,
    readers: Vec<Reader>,
    /// Nothing can be stored until then.
    unable_until: Option<Timestamp>,
}

/// One stream.
struct Kept {
    wish: StreamWish,
    created: Timestamp,
    /// Of the newest message ever kept.
    last: u64,
    newest_at: Timestamp,
    messages: BTreeMap<u64, Stored>,
    by_subject: BTreeMap<String, BTreeSet<u64>>,
    bytes: u64,
    /// Msg-Ids with their place, and when they were seen.
    seen: BTreeMap<String, (u64, Timestamp)>,
}

/// One that reads along.
pub struct Reader {
    /// Of the connection.
    pub client: u64,
    stream: String,
    patterns: Vec<String>,
    to: mpsc::UnboundedSender<Said>,
    /// What was held up on the way holds up what follows it.
    not_before: Instant,
}

/// How a message comes from the stream to a reader.
#[derive(Default)]
pub struct Way {
    pub hold: Duration,
    /// It does not come at all, and after this time the reader notices.
    pub lost: Option<Duration>,
}

impl Streams {
    /// Whether [`Self::ensure`] would change nothing.
    pub fn is_made(&self, wish: &StreamWish) -> bool {
        let as_it_is = |kept: &Kept| StreamWish { bytes_max: kept.wish.bytes_max, ..wish.clone() } == kept.wish;
        self.by_name.get(&wish.name).is_some_and(as_it_is)
    }

    /// The rules of the product's own calls: what is ours is brought in line, what is not is used as it is.
    pub fn ensure(&mut self, wish: &StreamWish, now: Timestamp) -> Result<StreamFacts, Error> {
        let overlaps = self.by_name.values().any(|other| {
            other.wish.name != wish.name
                && other.wish.subjects.iter().any(|one| wish.subjects.iter().any(|subject| overlap(one, subject)))
        });
        let foreign = |detail: &str| Error::ForeignStream { stream: wish.name.clone(), detail: detail.to_owned() };
        if let Some(kept) = self.by_name.get_mut(&wish.name) {
            let has_subjects = wish.subjects.iter().all(|subject| kept.wish.subjects.contains(subject));
            if kept.wish.owner != wish.owner || overlaps {
                return if has_subjects { Ok(kept.facts()) } else { Err(foreign("it is somebody else's")) };
            }
            kept.wish = StreamWish { bytes_max: kept.wish.bytes_max, ..wish.clone() };
            return Ok(kept.facts());
        }
        if overlaps {
            return Err(foreign("subjects overlap with an existing stream"));
        }
        let kept = Kept::new(wish.clone(), now);
        let facts = kept.facts();
        self.by_name.insert(wish.name.clone(), kept);
        Ok(facts)
    }

    pub fn facts(&mut self, stream: &str, now: Timestamp) -> Result<StreamFacts, Error> {
        Ok(self.kept(stream, now)?.facts())
    }

    pub fn keeps(&self, subject: &str) -> bool {
        self.by_name.values().any(|kept| kept.wish.subjects.iter().any(|pattern| overlap(pattern, subject)))
    }

    pub fn subjects(&mut self, stream: &str, pattern: &str, now: Timestamp) -> Result<Vec<String>, Error> {
        let kept = self.kept(stream, now)?;
        Ok(kept.by_subject.keys().filter(|subject| matches(pattern, subject)).cloned().collect())
    }

    pub fn last(&mut self, stream: &str, subject: &str, now: Timestamp) -> Result<Option<Stored>, Error> {
        let kept = self.kept(stream, now)?;
        let newest = kept.by_subject.get(subject).and_then(BTreeSet::last);
        Ok(newest.and_then(|sequence| kept.messages.get(sequence)).cloned())
    }

    pub fn purge(&mut self, stream: &str, pattern: &str, before: u64, now: Timestamp) -> Result<(), Error> {
        let kept = self.kept(stream, now)?;
        let gone: Vec<u64> = kept
            .messages
            .range(..before)
            .filter(|(_, stored)| matches(pattern, &stored.message.subject))
            .map(|(sequence, _)| *sequence)
            .collect();
        for sequence in gone {
            kept.remove(sequence);
        }
        Ok(())
    }

    /// Begins a reading: how much of the past it has, and where all of it comes out.
    pub fn read(
        &mut self,
        (client, stream): (u64, &str),
        patterns: &[String],
        begin: Begin,
        now: Timestamp,
    ) -> Result<(u64, mpsc::UnboundedReceiver<Said>), Error> {
        let (to, from) = mpsc::unbounded_channel();
        let not_before = Instant::now();
        let reader = Reader { client, stream: stream.to_owned(), patterns: patterns.to_vec(), to, not_before };
        let kept = self.kept(stream, now)?;
        let begins = |stored: &&Stored| match begin {
            Begin::Sequence(sequence) => stored.sequence >= sequence,
            Begin::Time(at) => stored.at >= at,
            Begin::New => false,
        };
        let mut pending = 0;
        for stored in kept.messages.values().filter(begins).filter(|stored| reader.wants(&stored.message.subject)) {
            pending += 1;
            // The receiver is in this very function.
            let _ = reader.to.send((not_before, Ok(stored.clone())));
        }
        self.readers.push(reader);
        Ok((pending, from))
    }

    /// Keeps the message, if it is any stream's, and gives it to all who read along. The stream, and the place or why not.
    pub fn keep(
        &mut self,
        message: &Message,
        now: Timestamp,
        way: impl FnMut(u64) -> Way,
    ) -> Option<(String, Result<u64, &'static str>)> {
        let is_unable = self.unable_until.is_some_and(|until| now < until);
        let is_its = |kept: &&mut Kept| kept.wish.subjects.iter().any(|pattern| matches(pattern, &message.subject));
        let kept = self.by_name.values_mut().find(is_its)?;
        let name = kept.wish.name.clone();
        if is_unable {
            return Some((name, Err("insufficient storage resources available")));
        }
        let place = match kept.keep(message, now) {
            Ok(Placed::New(stored)) => {
                let sequence = stored.sequence;
                self.tell(&name, &stored, way);
                Ok(sequence)
            }
            Ok(Placed::Before(sequence)) => Ok(sequence),
            Err(why) => Err(why),
        };
        Some((name, place))
    }

    fn tell(&mut self, stream: &str, stored: &Stored, mut way: impl FnMut(u64) -> Way) {
        let now = Instant::now();
        self.readers.retain_mut(|reader| {
            if reader.stream != stream || !reader.wants(&stored.message.subject) {
                return true;
            }
            let Way { hold, lost } = way(reader.client);
            if let Some(notices) = lost {
                reader.end(now + notices, "a message was lost on its way from the stream");
                return false;
            }
            reader.not_before = reader.not_before.max(now + hold);
            reader.to.send((reader.not_before, Ok(stored.clone()))).is_ok()
        });
    }

    /// Ends the readings of these connections.
    pub fn end_readings(&mut self, is_one: impl Fn(&Reader) -> bool, why: &str) {
        let now = Instant::now();
        self.readers.retain_mut(|reader| {
            let ends = is_one(reader);
            if ends {
                reader.end(now, why);
            }
            !ends
        });
    }

    /// Deletes all streams.
    pub fn wipe(&mut self) {
        self.end_readings(|_| true, "the stream is gone");
        self.by_name.clear();
    }

    pub fn unable_until(&mut self, until: Timestamp) {
        self.unable_until = Some(until);
    }

    fn kept(&mut self, stream: &str, now: Timestamp) -> Result<&mut Kept, Error> {
        let none = || Error::NoStream { stream: stream.to_owned() };
        let kept = self.by_name.get_mut(stream).ok_or_else(none)?;
        kept.age(now);
        Ok(kept)
    }
}

/// Where a message came to stand.
enum Placed {
    New(Stored),
    /// Its Msg-Id was there already.
    Before(u64),
}

impl Kept {
    fn new(wish: StreamWish, created: Timestamp) -> Self {
        let (messages, by_subject, seen) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { wish, created, last: 0, newest_at: created, messages, by_subject, bytes: 0, seen }
    }

    fn facts(&self) -> StreamFacts {
        let first = self.messages.keys().next().copied().unwrap_or(self.last + 1);
        StreamFacts { name: self.wish.name.clone(), created: self.created, first, last: self.last }
    }

    fn keep(&mut self, message: &Message, now: Timestamp) -> Result<Placed, &'static str> {
        self.age(now);
        if self.wish.message_bytes_max.is_some_and(|most| message.size_bytes() > most) {
            return Err("message size exceeds maximum allowed");
        }
        if let Some(id) = message.headers.get("Nats-Msg-Id") {
            let window = self.wish.duplicate_window;
            self.seen.retain(|_, (_, at)| now.duration_since(*at).unsigned_abs() <= window);
            if let Some((sequence, _)) = self.seen.get(id) {
                return Ok(Placed::Before(*sequence));
            }
            self.seen.insert(id.to_owned(), (self.last + 1, now));
        }
        self.last += 1;
        // No two at the same time, however coarse the clock is.
        let soonest = self.newest_at.saturating_add(SignedDuration::from_nanos(1)).unwrap_or(now);
        self.newest_at = now.max(soonest);
        let stored =
            Stored { sequence: self.last, at: self.newest_at, message: Message { reply: None, ..message.clone() } };
        self.bytes += size_bytes(&stored);
        self.messages.insert(self.last, stored.clone());
        let of_subject = self.by_subject.entry(message.subject.clone()).or_default();
        of_subject.insert(self.last);
        let most = self.wish.messages_per_subject_max.and_then(|most| usize::try_from(most).ok());
        let surplus = of_subject.first().copied().filter(|_| most.is_some_and(|most| of_subject.len() > most));
        if let Some(oldest) = surplus {
            self.remove(oldest);
        }
        while self.wish.bytes_max.is_some_and(|most| self.bytes > most)
            && let Some(&oldest) = self.messages.keys().next()
        {
            self.remove(oldest);
        }
        Ok(Placed::New(stored))
    }

    /// Lets go of what is too old.
    fn age(&mut self, now: Timestamp) {
        let Some(age_max) = self.wish.age_max else { return };
        while let Some((&oldest, stored)) = self.messages.iter().next()
            && now.duration_since(stored.at).unsigned_abs() > age_max
        {
            self.remove(oldest);
        }
    }

    fn remove(&mut self, sequence: u64) {
        let Some(stored) = self.messages.remove(&sequence) else { return };
        self.bytes -= size_bytes(&stored);
        if let Some(of_subject) = self.by_subject.get_mut(&stored.message.subject) {
            of_subject.remove(&sequence);
            if of_subject.is_empty() {
                self.by_subject.remove(&stored.message.subject);
            }
        }
    }
}

impl Reader {
    fn wants(&self, subject: &str) -> bool {
        self.patterns.is_empty() || self.patterns.iter().any(|pattern| matches(pattern, subject))
    }

    fn end(&mut self, at: Instant, why: &str) {
        let error = Error::Stream { stream: self.stream.clone(), detail: why.to_owned() };
        // Whoever read has gone already, or hears it.
        let _ = self.to.send((at.max(self.not_before), Err(error)));
    }
}

/// Roughly what a message takes in a file.
fn size_bytes(stored: &Stored) -> u64 {
    let bytes = stored.message.size_bytes() + stored.message.subject.len() + 30;
    u64::try_from(bytes).expect("a message is not that large")
}

/// Whether some subject matches both patterns.
fn overlap(one: &str, other: &str) -> bool {
    let (mut ones, mut others) = (one.split('.'), other.split('.'));
    loop {
        match (ones.next(), others.next()) {
            (Some(">"), Some(_)) | (Some(_), Some(">")) | (None, None) => return true,
            (Some(one), Some(other)) if one == other || one == "*" || other == "*" => {}
            _ => return false,
        }
    }
}
