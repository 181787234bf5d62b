//! The bus: one way to publish, subscribe and ask, over NATS or inside the process.
//!
//! IO, but no meaning: nothing here knows what a phase is. It exists because a NATS client promises less than it seems
//! to: a flush proves nothing, a denied publish or subscription says nothing, a full buffer drops in silence, and what is
//! published while disconnected is delivered late. So [`Bus`] publishes only while connected, puts a deadline on every
//! call, tells by [`Link::epoch`] whenever something may have been missed, and [`Bus::prove`]s that a subscription is
//! live by hearing itself through it. [`Inbound`] does that for all that an operator listens to.

mod connect;
mod inbound;
mod jetstream;
mod link;
mod memory;
mod message;
mod nats;
mod proof;
mod replies;
mod stream;
pub mod streams;
mod subject;
mod transport;

use std::{
    collections::{BTreeSet, VecDeque},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use tokio::sync::watch;

pub use connect::{Auth, ConnectOptions, Secret, Tls};
pub use inbound::{
    Arrival, CHANNELS, Counters, Hearing, Inbound, InboundBody, InboundHandle, InboundMessage, Keeping, Origin, Place,
    Ready, Sink, Trouble,
};
pub use link::{Link, LinkState};
pub use message::{Headers, Message};
pub use stream::{Begin, Position, Reading, Storage, Stored, StreamFacts, StreamWish};
pub use transport::{Answer, Source, Transport};

/// How long any call may take but for those that name their own limit.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a call on the bus did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("not connected to the bus: {reason}")]
    Disconnected { reason: String },
    #[error(
        "`{subject}` is no subject to publish to: write tokens of printable characters joined by single dots, without wildcards"
    )]
    Subject { subject: String },
    #[error("`{pattern}` is no subject pattern: `*` stands for one token, `>` for the rest and only at the end")]
    Pattern { pattern: String },
    #[error("`{name}: ...` is no header: a name is printable ASCII without colon or space, and a value is one line")]
    Header { name: String },
    #[error("the message to `{subject}` has {size_bytes} bytes with headers; the bus takes at most {bytes_max}")]
    TooLarge { subject: String, size_bytes: usize, bytes_max: usize },
    #[error("the bus did not take the call on `{subject}` in time")]
    Timeout { subject: String },
    #[error("nobody listens on `{subject}`")]
    NoResponders { subject: String },
    #[error("the bus denies `{subject}`: grant this user the permission")]
    Denied { subject: String },
    #[error("the subscription to `{pattern}` did not hear its own message in time")]
    Unproven { pattern: String },
    #[error("the bus connection is closed")]
    Closed,
    #[error("`{address}` is no address of a server: {detail}")]
    Address { address: String, detail: String },
    #[error("the bus keeps no messages: {detail}")]
    NoStorage { detail: String },
    #[error(
        "another stream holds subjects of the stream {stream}: {detail}; give it other subjects, or this connection another prefix"
    )]
    ForeignStream { stream: String, detail: String },
    #[error("there is no stream {stream}")]
    NoStream { stream: String },
    #[error("the stream {stream} did not do as it was asked: {detail}")]
    Stream { stream: String, detail: String },
    #[error("cannot use {what}: {detail}")]
    Option { what: &'static str, detail: String },
}

impl Error {
    /// The one word that conditions, events and metrics share.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Disconnected { .. } | Self::Closed => "BusDisconnected",
            Self::Subject { .. } | Self::Pattern { .. } | Self::Header { .. } => "BadSubject",
            Self::TooLarge { .. } => "TooLarge",
            Self::Timeout { .. } | Self::Unproven { .. } => "BusTimeout",
            Self::NoResponders { .. } => "NoResponders",
            Self::Denied { .. } => "PermissionDenied",
            Self::NoStorage { .. } => "NoJetStream",
            Self::ForeignStream { .. } => "ForeignStream",
            Self::NoStream { .. } | Self::Stream { .. } => "StreamFailed",
            Self::Address { .. } | Self::Option { .. } => "BadConnection",
        }
    }
}

/// A bus. Cloning is a reference count; the connection ends with the last clone and the last subscription.
#[derive(Clone)]
pub struct Bus(Arc<dyn Transport>);

impl Bus {
    /// A bus inside this process, with the same behaviour: wildcards, queue groups, requests, order, bounded queues.
    pub fn memory() -> Self {
        Self::over(memory::Hub::new())
    }

    /// Starts to connect and answers at once; the connection is retried for ever and [`Bus::link`] tells how it stands.
    ///
    /// Fails only on options that no retry can mend ([`Error::Address`], [`Error::Option`]).
    pub async fn connect(options: ConnectOptions) -> Result<Self, Error> {
        nats::Connection::open(options).await.map(Self::over)
    }

    /// A bus over whatever carries messages as a [`Transport`] promises to.
    pub fn over(transport: impl Transport) -> Self {
        Self(Arc::new(transport))
    }

    /// Publishes, at most once: `Ok` says that the message was given to a connection that was up, never that it arrived.
    ///
    /// Refuses at once while disconnected, since a client would send it late; waits at most [`CALL_TIMEOUT`].
    pub async fn publish(&self, message: Message) -> Result<(), Error> {
        subject::check_subject(&message.subject)?;
        if let Some(reply) = &message.reply {
            subject::check_subject(reply)?;
        }
        message.headers.check()?;
        self.0.publish(message).await
    }

    /// Listens to a pattern (`*` one token, `>` the rest); with a queue group, each message goes to one of its members.
    ///
    /// `Ok` says that the wish was noted: it is repeated at every reconnect, but only [`Bus::prove`] tells that it holds.
    pub async fn subscribe(&self, pattern: &str, queue: Option<&str>) -> Result<Subscription, Error> {
        subject::check_pattern(pattern)?;
        if let Some(queue) = queue {
            subject::check_subject(queue)?;
        }
        let source = self.0.subscribe(pattern, queue).await?;
        let (pattern, queue) = (pattern.to_owned(), queue.map(str::to_owned));
        Ok(Subscription { source, pattern, queue, ahead: VecDeque::new() })
    }

    /// Publishes and waits for one reply: [`Error::NoResponders`] at once when nobody listens, [`Error::Timeout`] after
    /// `timeout`. The message's own `reply` is not used.
    pub async fn request(&self, message: Message, timeout: Duration) -> Result<Message, Error> {
        subject::check_subject(&message.subject)?;
        message.headers.check()?;
        self.0.request(message, timeout).await
    }

    /// How the connection stands, and whether anything may have been missed.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.0.link()
    }

    /// Largest message, headers and body together.
    pub fn payload_bytes_max(&self) -> usize {
        self.0.payload_bytes_max()
    }

    /// Longest time for which the connection may be dead, and take messages, before [`Bus::link`] says so.
    pub fn unnoticed_max(&self) -> Duration {
        self.0.unnoticed_max()
    }

    /// Streams of this bus, where it can keep messages at all.
    pub fn storage(&self) -> Option<&dyn Storage> {
        self.0.storage()
    }

    /// A subject of our own that nobody else uses.
    fn inbox(&self) -> String {
        self.0.inbox()
    }

    /// Subjects and patterns that the server denied on this connection; `None` where nothing is ever denied.
    pub fn denied(&self) -> Option<watch::Receiver<BTreeSet<String>>> {
        self.0.denied()
    }

    /// Forgets a denial before what was denied is tried again: the right may have been granted meanwhile.
    fn forgive(&self, subject: &str) {
        self.0.forgive(subject);
    }
}

/// Messages of one pattern, in the order in which the bus delivered them. Dropping it unsubscribes.
///
/// The queue is bounded: a reader that falls behind loses messages, and [`Link::epoch`] rises. Probes (see
/// [`Bus::prove`]) are not shown.
pub struct Subscription {
    source: Source,
    pattern: String,
    queue: Option<String>,
    /// Read while a probe was waited for.
    ahead: VecDeque<Message>,
}

impl Subscription {
    /// The next message, probes included.
    fn poll_raw(&mut self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        if let Some(message) = self.ahead.pop_front() {
            return Poll::Ready(Some(message));
        }
        self.source.as_mut().poll_next(cx)
    }
}

impl Stream for Subscription {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        loop {
            match self.poll_raw(cx) {
                Poll::Ready(Some(message)) if proof::is_probe(&message) => {}
                other => return other,
            }
        }
    }
}
