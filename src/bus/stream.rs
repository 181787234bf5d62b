//! Messages that the bus keeps: streams, on NATS those of JetStream.
//!
//! A stream is a buffer and never the truth: it may be full, emptied or gone at any moment, and whoever reads one has to
//! go on without. So nothing here is acknowledged to the server, and nothing is ever deleted and made anew.

use std::{fmt, pin::Pin, time::Duration};

use futures::Stream;
use jiff::Timestamp;

use super::{Message, transport::Answer};

/// A stream as it should be. What is not named here is the administrator's: replicas, placement, compression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamWish {
    /// Letters, digits, `_` and `-`.
    pub name: String,
    /// Whose it is: a stream of that name without this mark is left as it is, and used only if it has the subjects.
    pub owner: String,
    pub description: String,
    /// Patterns; no two streams of a server may share a subject.
    pub subjects: Vec<String>,
    /// Older messages go; `None` keeps them.
    pub age_max: Option<Duration>,
    /// Of all messages together; the oldest go first. Less, where the server has less to give.
    pub bytes_max: Option<u64>,
    /// Of one subject; the oldest go first.
    pub messages_per_subject_max: Option<u64>,
    /// Of one message; larger ones are not kept.
    pub message_bytes_max: Option<usize>,
    /// A message whose Msg-Id was seen this long ago is not kept again.
    pub duplicate_window: Duration,
}

/// What a stream holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamFacts {
    pub name: String,
    /// When it was made, in whole milliseconds: a stream of another time is another one, whatever its name.
    pub created: Timestamp,
    /// Of the oldest message that is kept; one more than `last` when none is.
    pub first: u64,
    /// Of the newest message ever kept; 0 before the first.
    pub last: u64,
}

/// A place in a stream. Two are in order only within one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    pub stream: String,
    pub created: Timestamp,
    pub sequence: u64,
}

/// Where to begin to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// At this one, or the next that is kept.
    Sequence(u64),
    /// At the first that was kept at this time or later.
    Time(Timestamp),
    /// At the next that comes.
    New,
}

/// A message as it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub sequence: u64,
    pub at: Timestamp,
    pub message: Message,
}

/// Stored messages in order, without a gap. It ends with an error when one would be missing, or when nothing can be said
/// any more (connection lost, consumer or stream gone, silence for too long); whoever reads begins again behind the last.
pub struct Reading {
    /// Messages that matched when the reading began: after so many, the past is read.
    pub pending: u64,
    pub messages: Pin<Box<dyn Stream<Item = Result<Stored, super::Error>> + Send>>,
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").field("pending", &self.pending).finish_non_exhaustive()
    }
}

/// What a bus can do with streams. Every call ends within [`super::CALL_TIMEOUT`]; [`super::Error::NoStorage`] says that
/// the server has none now.
pub trait Storage: Send + Sync {
    /// Makes the stream, or brings it in line with the wish; answers with what it holds.
    ///
    /// [`super::Error::ForeignStream`] if another stream has one of its subjects.
    fn ensure<'a>(&'a self, wish: &'a StreamWish) -> Answer<'a, StreamFacts>;

    /// What the stream holds now; [`super::Error::NoStream`] if there is none of that name.
    fn facts<'a>(&'a self, stream: &'a str) -> Answer<'a, StreamFacts>;

    /// Reads what matches any of the patterns, from `begin` on and without end. No patterns are all.
    fn read<'a>(&'a self, stream: &'a str, patterns: &'a [String], begin: Begin) -> Answer<'a, Reading>;

    /// Publishes, and waits until a stream has the message; answers with its place, the same again for a Msg-Id that it
    /// has seen. Whoever is subscribed hears it too, also when no stream took it.
    fn publish(&self, message: Message) -> Answer<'_, u64>;

    /// Whether some stream keeps what is published there.
    fn keeps<'a>(&'a self, subject: &'a str) -> Answer<'a, bool>;

    /// Subjects that match the pattern and have messages, at most `count_max` of them.
    fn subjects<'a>(&'a self, stream: &'a str, pattern: &'a str, count_max: usize) -> Answer<'a, Vec<String>>;

    /// The newest message of the subject.
    fn last<'a>(&'a self, stream: &'a str, subject: &'a str) -> Answer<'a, Option<Stored>>;

    /// Removes what matches the pattern and stands before this place.
    fn purge<'a>(&'a self, stream: &'a str, pattern: &'a str, before: u64) -> Answer<'a, ()>;
}
