//! A NATS server in the process, behind [`pmp::bus::Transport`]: clients whose links go and come back, messages that are
//! lost, late or out of order; and streams, if the server is one that keeps any.
//!
//! `tests/it/bus/suite.rs` holds it to the same laws as a real server, `tests/it/bus/streams.rs` its streams.

mod client;
mod storage;
mod streams;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use jiff::Timestamp;
use pmp::{
    bus::{Bus, Link, LinkState, Message},
    sessions::Clock,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};

pub use self::streams::Way;
use self::{client::Client, streams::Streams};
use super::{
    fates::{Lost, PublishFate, Weight},
    world::{Door, Shared},
};

/// Messages that wait for one subscription, as on the product's own connections.
const QUEUE_MESSAGES_MAX: usize = 65_536;

/// The server. Cloning is a reference count.
#[derive(Clone)]
pub struct Nats(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    shared: Shared,
    clock: Clock,
    server: Server,
}

/// What kind of server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// Passes on and forgets.
    Plain,
    /// JetStream is on.
    Keeping,
}

#[derive(Default)]
struct State {
    next: u64,
    clients: BTreeMap<u64, Connected>,
    members: BTreeMap<u64, Member>,
    /// Requests that wait, by their inbox: whose, and where to.
    waiting: HashMap<String, (u64, oneshot::Sender<Option<Message>>)>,
    /// By queue group.
    turns: BTreeMap<String, usize>,
    streams: Streams,
}

struct Connected {
    door: Door,
    link: watch::Sender<Link>,
}

struct Member {
    client: u64,
    pattern: String,
    queue: Option<String>,
    sender: mpsc::Sender<Message>,
    /// Whether its queue was full at the last delivery.
    losing: bool,
}

impl Nats {
    pub fn new(clock: Clock, shared: Shared, server: Server) -> Self {
        Self(Arc::new(Inner { state: Mutex::default(), shared, clock, server }))
    }

    pub fn keeps(&self) -> bool {
        self.0.server == Server::Keeping
    }

    /// A connection of this process, which is up.
    pub fn connect(&self, door: &Door) -> Bus {
        let link = watch::Sender::new(Link { state: LinkState::Connected, epoch: 1 });
        let mut state = self.state();
        let id = state.next();
        state.clients.insert(id, Connected { door: door.clone(), link: link.clone() });
        Bus::over(Client { nats: self.clone(), id, door: door.clone(), link })
    }

    /// The links of the process go: what is sent to it is lost, and it can send nothing.
    pub fn cut(&self, door: &Door) {
        let reason = "the connection was lost".to_owned();
        self.each_link(door, |link| link.state = LinkState::Disconnected { reason: reason.clone() });
        let mut state = self.state();
        let gone = state.clients_of(door);
        state.streams.end_readings(|reader| gone.contains(&reader.client), "the connection was lost");
    }

    /// They come back, and the process knows that it may have missed something.
    pub fn mend(&self, door: &Door) {
        self.each_link(door, |link| {
            if !link.is_connected() {
                *link = Link { state: LinkState::Connected, epoch: link.epoch + 1 };
            }
        });
    }

    /// A process that died: its subscriptions and requests are gone.
    pub fn forget(&self, door: &Door) {
        let mut state = self.state();
        let gone = state.clients_of(door);
        state.streams.end_readings(|reader| gone.contains(&reader.client), "the connection is closed");
        state.clients.retain(|id, _| !gone.contains(id));
        state.members.retain(|_, member| !gone.contains(&member.client));
        state.waiting.retain(|_, (client, _)| !gone.contains(client));
    }

    /// All that streams keep is gone, and the streams themselves.
    pub fn wipe(&self) {
        self.state().streams.wipe();
    }

    /// Nothing can be stored for so long; what is published is passed on all the same.
    pub fn fill_up(&self, length: Duration) {
        let until = self.0.clock.now() + length;
        self.state().streams.unable_until(until);
    }

    fn each_link(&self, door: &Door, change: impl Fn(&mut Link)) {
        for client in self.state().clients.values().filter(|client| client.door.name() == door.name()) {
            client.link.send_modify(&change);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("nobody panics while holding it")
    }

    fn shared(&self) -> &Shared {
        &self.0.shared
    }

    fn on_streams<T>(&self, act: impl FnOnce(&mut Streams, Timestamp) -> T) -> T {
        act(&mut self.state().streams, self.0.clock.now())
    }

    /// Takes a message from a client whose link is up, and does with it as fate has it.
    fn take(&self, door: &Door, message: &Message) {
        let shared = &self.0.shared;
        let weight = weight(door, message);
        let fate = shared.fates.publish(door, weight);
        if weight == Weight::Asks {
            self.mend_runtimes();
        }
        if weight != Weight::Probe {
            note(shared, door, message, &fate);
            shared.judged(shared.checks.said(door, message));
        }
        let times = if fate.lost == Lost::Before { 0 } else { 1 + usize::from(fate.twice) };
        for _ in 0..times {
            if fate.hold.is_zero() {
                self.arrive(message.clone(), fate.lost);
                continue;
            }
            let (nats, message, hold, lost) = (self.clone(), message.clone(), fate.hold, fate.lost);
            tokio::spawn(async move {
                sleep(hold).await;
                nats.arrive(message, lost);
            });
        }
        if fate.crash {
            door.shut();
        }
    }

    /// Whoever is asked what it holds has a link: see [`Weight::Asks`].
    fn mend_runtimes(&self) {
        let doors: Vec<Door> = self.state().clients.values().map(|client| client.door.clone()).collect();
        for door in doors.iter().filter(|door| door.is_runtime()) {
            self.mend(door);
        }
    }

    /// The message is at the server: streams keep it, whoever is subscribed hears it, but for what is lost behind the
    /// server, which a stream makes good.
    fn arrive(&self, message: Message, lost: Lost) {
        let kept = if self.keeps() { self.keep(&message) } else { None };
        let (is_kept, has_stream) = (matches!(kept, Some((_, Ok(_)))), kept.is_some());
        let answer = kept.zip(message.reply.clone());
        if lost != Lost::Behind || !is_kept {
            self.deliver(message, has_stream);
        }
        if let Some(((stream, place), reply)) = answer {
            self.deliver(Message::new(reply, storage::word(&stream, place)), false);
        }
    }

    fn keep(&self, message: &Message) -> Option<(String, Result<u64, &'static str>)> {
        let mut state = self.state();
        let State { clients, streams, .. } = &mut *state;
        let way = |client| match clients.get(&client) {
            Some(client) => self.0.shared.fates.reading(&client.door),
            None => Way::default(),
        };
        streams.keep(message, self.0.clock.now(), way)
    }

    /// Puts the message where it is asked for, as far as links are up. A request that nobody hears is told so.
    fn deliver(&self, message: Message, has_stream: bool) {
        let mut state = self.state();
        if let Some((client, waiting)) = state.waiting.remove(&message.subject) {
            if state.is_up(client) {
                let _ = waiting.send(Some(message));
            }
            return;
        }
        let to = state.listeners(&message.subject);
        let mut heard = Vec::new();
        for id in &to {
            let member = state.members.get_mut(id).expect("listeners are members");
            let full = matches!(member.sender.try_send(message.clone()), Err(mpsc::error::TrySendError::Full(_)));
            let (client, is_news) = (member.client, full != member.losing);
            member.losing = full;
            let client = &state.clients[&client];
            if is_news {
                client.link.send_modify(|link| link.epoch += 1);
            }
            heard.push(client.door.clone());
        }
        if let Some(waiting) = message.reply.as_ref().filter(|_| to.is_empty() && !has_stream)
            && let Some((_, waiting)) = state.waiting.remove(waiting)
        {
            let _ = waiting.send(None);
        }
        drop(state);
        for door in heard.iter().filter(|door| door.is_operator()) {
            self.0.shared.checks.heard(door, &message);
        }
    }
}

impl State {
    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn clients_of(&self, door: &Door) -> Vec<u64> {
        self.clients.iter().filter(|(_, client)| client.door.name() == door.name()).map(|(id, _)| *id).collect()
    }

    fn is_up(&self, client: u64) -> bool {
        self.clients.get(&client).is_some_and(|client| client.link.borrow().is_connected())
    }

    /// All who listen for themselves, and one of each queue group.
    fn listeners(&mut self, subject: &str) -> Vec<u64> {
        let mut groups: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut to = Vec::new();
        for (&id, member) in &self.members {
            if matches(&member.pattern, subject) && self.is_up(member.client) {
                match &member.queue {
                    None => to.push(id),
                    Some(queue) => groups.entry(queue.clone()).or_default().push(id),
                }
            }
        }
        // In turn: what is said again goes to whoever has not heard it, which is the worst that can happen.
        for (queue, members) in groups {
            let turn = self.turns.entry(queue).or_default();
            to.push(members[*turn % members.len()]);
            *turn += 1;
        }
        to
    }
}

/// `*` is one token, `>` at the end is the rest.
fn matches(pattern: &str, subject: &str) -> bool {
    let (mut wanted, mut tokens) = (pattern.split('.'), subject.split('.'));
    loop {
        match (wanted.next(), tokens.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(wanted), Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
}

fn weight(door: &Door, message: &Message) -> Weight {
    if message.headers.get("Pmp-Probe").is_some() {
        return Weight::Probe;
    }
    let has = |text: &str| message.body.windows(text.len()).any(|part| part == text.as_bytes());
    let channel = message.subject.rsplit('.').next().unwrap_or_default();
    match channel {
        "control" if door.is_operator() && has("x-report") && !has("x-runtime") => Weight::Asks,
        "state" if has("x-attempt") => Weight::Report,
        "state" | "start" => Weight::Precious,
        "events" | "log" => Weight::Told,
        _ => Weight::Plain,
    }
}

fn note(shared: &Shared, door: &Door, message: &Message, fate: &PublishFate) {
    let body = String::from_utf8_lossy(&message.body);
    // Holders and inboxes have random names.
    let body = message.headers.get("Pmp-Holder").map_or(body.clone(), |holder| body.replace(holder, "its own").into());
    let subject = if message.subject.starts_with('_') { "a reply" } else { &message.subject };
    let lost = match fate.lost {
        Lost::Nowhere => "",
        Lost::Before => " LOST",
        Lost::Behind => " UNHEARD",
    };
    let hold = fate.hold.as_millis();
    let crash = if fate.crash { " CRASH" } else { "" };
    shared.trace.note(format_args!("{} {door} says {subject}: {body:.400} +{hold} ms{lost}{crash}", fate.effect));
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use pmp::{
        bus::{Begin, Error, streams},
        protocol::Prefix,
    };

    use super::*;
    use crate::sim::{
        fates::{Fates, Sky},
        world::Role,
    };

    /// What a real server does by silence, and a real client by counting: here it is said at once.
    #[tokio::test]
    async fn a_reading_ends_with_an_error_when_its_link_goes_or_its_stream() {
        let shared = Shared::new(Fates::new(0, Sky::Calm));
        let nats = Nats::new(Clock::System, shared, Server::Keeping);
        let door = Door::new("a person", Role::Person);
        let bus = nats.connect(&door);
        let (storage, wish) = (bus.storage().expect("every bus here has one"), streams::reports(&Prefix::default()));
        let made = storage.ensure(&wish).await.unwrap();
        let mut reading = storage.read(&wish.name, &[], Begin::New).await.unwrap();
        nats.cut(&door);
        assert!(matches!(reading.messages.next().await, Some(Err(Error::Stream { .. }))));
        assert!(reading.messages.next().await.is_none());
        assert!(matches!(storage.facts(&wish.name).await, Err(Error::Disconnected { .. })));
        nats.mend(&door);
        assert_eq!(storage.facts(&wish.name).await.unwrap(), made, "it is the same stream");
        let mut reading = storage.read(&wish.name, &[], Begin::New).await.unwrap();
        nats.wipe();
        assert!(matches!(reading.messages.next().await, Some(Err(Error::Stream { .. }))));
        assert!(matches!(storage.facts(&wish.name).await, Err(Error::NoStream { .. })));
    }
}
