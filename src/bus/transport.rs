//! What carries messages: NATS, the process itself, or a simulation of either.
//!
//! [`super::Bus`] checks subjects and headers before anything comes here, so a transport need not.

use std::{collections::BTreeSet, pin::Pin, time::Duration};

use futures::{Stream, future::BoxFuture};
use tokio::sync::watch;

use super::{Error, Link, Message, Storage};

/// The answer to a call on the bus.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, Error>>;

/// Messages of one subscription, probes included; dropping it unsubscribes.
pub type Source = Pin<Box<dyn Stream<Item = Message> + Send>>;

/// One way to carry messages. The promises are those of [`super::Bus`], call by call; `tests/it/bus/suite.rs` holds
/// every transport to them.
pub trait Transport: Send + Sync + 'static {
    fn publish(&self, message: Message) -> Answer<'_, ()>;

    fn subscribe<'a>(&'a self, pattern: &'a str, queue: Option<&'a str>) -> Answer<'a, Source>;

    fn request(&self, message: Message, timeout: Duration) -> Answer<'_, Message>;

    fn link(&self) -> watch::Receiver<Link>;

    fn payload_bytes_max(&self) -> usize;

    /// A subject that nobody else uses.
    fn inbox(&self) -> String;

    /// Subjects and patterns that the server denied on this connection; `None` where nothing is ever denied.
    fn denied(&self) -> Option<watch::Receiver<BTreeSet<String>>> {
        None
    }

    /// Longest time for which the connection may be dead before the link says so.
    fn unnoticed_max(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// Forgets that a subject or pattern was denied: it is tried again, or was long ago.
    fn forgive(&self, _subject: &str) {}

    /// Streams, where messages can be kept at all. A server that has none answers every call with
    /// [`Error::NoStorage`].
    fn storage(&self) -> Option<&dyn Storage> {
        None
    }
}
