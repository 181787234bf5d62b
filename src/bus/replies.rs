//! Replies over NATS: one subscription for all requests of a connection.
//!
//! The client has the same inside, but keeps an entry for ever for each request that was never answered; here an entry
//! ends with its request.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_nats::{Client, Message};
use futures::StreamExt;
use tokio::{sync::oneshot, task::JoinHandle};

use super::{Error, proof};

/// The inbox of a connection. Dropping it ends the subscription.
pub(super) struct Replies {
    /// `<inbox prefix>.<nonce>.`; the number of the request follows.
    prefix: String,
    next: AtomicU64,
    waiting: Waiting,
    router: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct Waiting(Arc<Mutex<HashMap<String, oneshot::Sender<Message>>>>);

impl Waiting {
    /// Entries stand alone, so a panic elsewhere leaves nothing half done.
    fn entries(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<Message>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replies {
    /// Subscribes; what is published on the same connection afterwards is answered to a live inbox.
    pub(super) async fn open(client: &Client, inbox_prefix: &str) -> Result<Self, Error> {
        let prefix = format!("{inbox_prefix}.{}.", proof::nonce());
        let mut subscriber = client.subscribe(format!("{prefix}*")).await.map_err(|_| Error::Closed)?;
        let waiting = Waiting::default();
        let router = tokio::spawn({
            let waiting = waiting.clone();
            async move {
                while let Some(message) = subscriber.next().await {
                    let waiter = waiting.entries().remove(message.subject.as_str());
                    if let Some(waiter) = waiter {
                        // Whoever waited may have given up in this moment.
                        let _ = waiter.send(message);
                    }
                }
            }
        });
        Ok(Self { prefix, next: AtomicU64::new(0), waiting, router })
    }

    /// What the user needs leave to subscribe to.
    pub(super) fn pattern(&self) -> String {
        format!("{}*", self.prefix)
    }

    /// A place for one reply.
    pub(super) fn expect(&self) -> Expected {
        let inbox = format!("{}{}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = oneshot::channel();
        self.waiting.entries().insert(inbox.clone(), sender);
        Expected { inbox, receiver, waiting: self.waiting.clone() }
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        self.router.abort();
    }
}

/// One reply that is waited for; dropping it forgets the request.
pub(super) struct Expected {
    pub(super) inbox: String,
    receiver: oneshot::Receiver<Message>,
    waiting: Waiting,
}

impl Expected {
    /// The first reply; `None` when the connection was closed.
    pub(super) async fn reply(&mut self) -> Option<Message> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.waiting.entries().remove(&self.inbox);
    }
}
