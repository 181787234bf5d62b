//! The bus inside a process, for `pmp run` and for tests: the behaviour of NATS without a server.
//!
//! One lock orders everything: a message is in all its queues before the next is looked at. Nothing is stored; who is
//! not subscribed hears nothing.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Answer, Error, Link, LinkState, Message, Source, Transport, connect::QUEUE_MESSAGES_MAX, proof, subject};

/// The same as NATS's default, so that what works here works there.
const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// Where replies go; the number of the request follows.
const INBOX: &str = "_INBOX_memory.";

#[derive(Clone)]
pub(super) struct Hub(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    link: watch::Sender<Link>,
}

#[derive(Default)]
struct State {
    next_id: u64,
    /// In the order in which they were made.
    members: BTreeMap<u64, Member>,
    /// Requests that wait, by their inbox.
    waiting: HashMap<String, oneshot::Sender<Message>>,
    /// Takes turns within queue groups.
    turn: usize,
}

struct Member {
    pattern: String,
    queue: Option<String>,
    sender: mpsc::Sender<Message>,
    /// The queue was full at the last delivery: one signal a burst is enough, and one when it is over.
    losing: bool,
}

impl Hub {
    pub(super) fn new() -> Self {
        let link = watch::Sender::new(Link { state: LinkState::Connected, epoch: 1 });
        Self(Arc::new(Shared { state: Mutex::default(), link }))
    }

    fn listen(&self, pattern: &str, queue: Option<&str>) -> Queue {
        let (sender, receiver) = mpsc::channel(QUEUE_MESSAGES_MAX);
        let mut state = self.0.state();
        let id = state.next_id();
        let member = Member { pattern: pattern.to_owned(), queue: queue.map(str::to_owned), sender, losing: false };
        state.members.insert(id, member);
        Queue { hub: self.0.clone(), id, receiver }
    }

    async fn ask(&self, mut message: Message, timeout: Duration) -> Result<Message, Error> {
        check_size(&message)?;
        let subject = message.subject.clone();
        let (sender, receiver) = oneshot::channel();
        let waiting = {
            let mut state = self.0.state();
            let inbox = format!("{INBOX}{}", state.next_id());
            message.reply = Some(inbox.clone());
            state.waiting.insert(inbox.clone(), sender);
            let waiting = Waiting { hub: &self.0, inbox };
            let heard = self.deliver(&mut state, message);
            drop(state);
            if heard == 0 {
                return Err(Error::NoResponders { subject });
            }
            waiting
        };
        let reply = tokio::time::timeout(timeout, receiver).await;
        drop(waiting);
        match reply {
            Ok(Ok(message)) => Ok(message),
            Ok(Err(_)) | Err(_) => Err(Error::Timeout { subject }),
        }
    }

    /// Puts the message into every queue that asks for it; how many asked.
    fn deliver(&self, state: &mut State, message: Message) -> usize {
        if let Some(waiting) = state.waiting.remove(&message.subject) {
            // The asker may have gone in this moment; then the reply is nobody's.
            let _ = waiting.send(message);
            return 1;
        }
        let mut heard = 0;
        let mut groups: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut to = Vec::new();
        for (&id, member) in &state.members {
            if subject::matches(&member.pattern, &message.subject) {
                match &member.queue {
                    None => to.push(id),
                    Some(queue) => groups.entry(queue.clone()).or_default().push(id),
                }
            }
        }
        state.turn = state.turn.wrapping_add(1);
        to.extend(groups.values().map(|members| members[state.turn % members.len()]));
        for id in to {
            heard += 1;
            let Some(member) = state.members.get_mut(&id) else { continue };
            let lost = matches!(member.sender.try_send(message.clone()), Err(mpsc::error::TrySendError::Full(_)));
            if lost != member.losing {
                member.losing = lost;
                self.0.link.send_modify(|link| link.epoch += 1);
            }
        }
        heard
    }
}

impl Transport for Hub {
    fn publish(&self, message: Message) -> Answer<'_, ()> {
        let published = check_size(&message).map(|()| {
            self.deliver(&mut self.0.state(), message);
        });
        Box::pin(std::future::ready(published))
    }

    fn subscribe<'a>(&'a self, pattern: &'a str, queue: Option<&'a str>) -> Answer<'a, Source> {
        let source: Source = Box::pin(self.listen(pattern, queue));
        Box::pin(std::future::ready(Ok(source)))
    }

    fn request(&self, message: Message, timeout: Duration) -> Answer<'_, Message> {
        Box::pin(self.ask(message, timeout))
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.0.link.subscribe()
    }

    fn payload_bytes_max(&self) -> usize {
        PAYLOAD_BYTES_MAX
    }

    fn inbox(&self) -> String {
        format!("{INBOX}{}", proof::nonce())
    }
}

fn check_size(message: &Message) -> Result<(), Error> {
    let size_bytes = message.size_bytes();
    if size_bytes > PAYLOAD_BYTES_MAX {
        return Err(Error::TooLarge { subject: message.subject.clone(), size_bytes, bytes_max: PAYLOAD_BYTES_MAX });
    }
    Ok(())
}

impl Shared {
    /// A panic elsewhere cannot leave this state half changed in a way that matters: every entry stands alone.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

/// Forgets a request however its future ends.
struct Waiting<'a> {
    hub: &'a Shared,
    inbox: String,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.hub.state().waiting.remove(&self.inbox);
    }
}

/// One subscription; dropping it unsubscribes.
struct Queue {
    hub: Arc<Shared>,
    id: u64,
    receiver: mpsc::Receiver<Message>,
}

impl Stream for Queue {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.receiver.poll_recv(cx)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.hub.state().members.remove(&self.id);
    }
}
