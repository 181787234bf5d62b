//! One connection to the fake server, with the product's own promises: see [`pmp::bus::Bus`].

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use pmp::bus::{Answer, Error, Link, LinkState, Message, Source, Storage, Transport};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Member, Nats, QUEUE_MESSAGES_MAX};
use crate::sim::world::Door;

/// The server's default.
const PAYLOAD_BYTES_MAX: usize = 1 << 20;

pub struct Client {
    pub nats: Nats,
    pub id: u64,
    pub door: Door,
    pub link: watch::Sender<Link>,
}

impl Client {
    pub fn check(&self, message: &Message) -> Result<(), Error> {
        if let LinkState::Disconnected { reason } = &self.link.borrow().state {
            return Err(Error::Disconnected { reason: reason.clone() });
        }
        let size_bytes = message.size_bytes();
        if size_bytes > PAYLOAD_BYTES_MAX {
            let subject = message.subject.clone();
            return Err(Error::TooLarge { subject, size_bytes, bytes_max: PAYLOAD_BYTES_MAX });
        }
        Ok(())
    }

    async fn send(&self, message: Message) -> Result<(), Error> {
        self.door.pass().await;
        self.check(&message)?;
        self.nats.take(&self.door, &message);
        self.door.pass().await;
        Ok(())
    }

    pub async fn ask(&self, mut message: Message, timeout: Duration) -> Result<Message, Error> {
        self.door.pass().await;
        self.check(&message)?;
        let subject = message.subject.clone();
        let inbox = self.inbox();
        message.reply = Some(inbox.clone());
        let (sender, receiver) = oneshot::channel();
        self.nats.state().waiting.insert(inbox.clone(), (self.id, sender));
        let _forget = Waiting { nats: &self.nats, inbox };
        self.nats.take(&self.door, &message);
        let answer = tokio::time::timeout(timeout, receiver).await;
        self.door.pass().await;
        match answer {
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(Ok(None)) => Err(Error::NoResponders { subject }),
            Ok(Err(_)) | Err(_) => Err(Error::Timeout { subject }),
        }
    }
}

impl Transport for Client {
    fn publish(&self, message: Message) -> Answer<'_, ()> {
        Box::pin(self.send(message))
    }

    fn subscribe<'a>(&'a self, pattern: &'a str, queue: Option<&'a str>) -> Answer<'a, Source> {
        Box::pin(async move {
            self.door.pass().await;
            let (sender, receiver) = mpsc::channel(QUEUE_MESSAGES_MAX);
            let (pattern, queue) = (pattern.to_owned(), queue.map(str::to_owned));
            let mut state = self.nats.state();
            let id = state.next();
            state.members.insert(id, Member { client: self.id, pattern, queue, sender, losing: false });
            drop(state);
            let source: Source = Box::pin(Queue { nats: self.nats.clone(), id, receiver, door: self.door.clone() });
            Ok(source)
        })
    }

    fn request(&self, message: Message, timeout: Duration) -> Answer<'_, Message> {
        Box::pin(self.ask(message, timeout))
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    fn payload_bytes_max(&self) -> usize {
        PAYLOAD_BYTES_MAX
    }

    fn inbox(&self) -> String {
        format!("_INBOX_sim.{}", self.nats.state().next())
    }

    fn storage(&self) -> Option<&dyn Storage> {
        Some(self)
    }
}

/// Forgets a request however its future ends.
struct Waiting<'a> {
    nats: &'a Nats,
    inbox: String,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.nats.state().waiting.remove(&self.inbox);
    }
}

/// One subscription; dropping it unsubscribes.
struct Queue {
    nats: Nats,
    id: u64,
    receiver: mpsc::Receiver<Message>,
    door: Door,
}

impl Stream for Queue {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        // The dead read nothing, not even the end.
        if self.door.is_shut() { Poll::Pending } else { self.receiver.poll_recv(cx) }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.nats.state().members.remove(&self.id);
    }
}
