//! The loop of one session: hear (`hearing`), think, speak, store (`storing`).

mod hearing;
mod storing;

use std::{collections::HashMap, time::Duration};

use jiff::SignedDuration;
use rand::Rng as _;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    clock::Clock,
    contest::Contest,
    pace::{Pace, Urgency},
    speech::Speech,
    store::{Picture, Refused, Store, StoreError},
};
use crate::{
    bus::{Bus, InboundHandle, InboundMessage, Message, Position, Ready, Sink, streams},
    engine::{AskId, Control, Edit, Input, Output, PhaseState, Request, Session, Settings},
    manifest::ExternalWait,
    protocol::{Prefix, SessionId},
    resource::BusStanding,
};

/// Orders in flight: one an edit of the resource, and edits are coalesced by the watch that brings them.
const ORDERS_MAX: usize = 16;

/// Without a stored write for so long, nothing new is offered: what a crash could forget stays bounded.
const UNSTORED_MAX: Duration = Duration::from_secs(15);

/// A clock that is judged so long after it ran out was not watched meanwhile.
const LATE_MAX: SignedDuration = SignedDuration::from_secs(3);

/// `Pmp-Origin` of all that a session says: the cluster, or the one process of a laptop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(pub String);

/// A session to run.
pub struct Start {
    pub session: Session,
    pub id: SessionId,
    pub prefix: Prefix,
    pub origin: Origin,
    /// Of the resource that the session's settings are of.
    pub generation: i64,
    /// Obeyed before anything is stored: the first stored status already knows of the edit that it was begun for,
    /// so that nobody takes the verdict on the last revision for one on this generation.
    pub orders: Vec<Order>,
    pub past: Past,
    /// Of the last report that the session knows of, in the stream of reports.
    pub position: Option<Position>,
    pub clock: Clock,
}

/// Whether anything can have been said of the session before this task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    None,
    /// By a process that may have ended before it stored what it said.
    Stored,
}

/// What the resource asks of its running session.
#[derive(Debug)]
pub enum Order {
    /// A spec that is acted on.
    Obey {
        generation: i64,
        settings: Box<Settings>,
        requests: Vec<Request>,
        /// A new revision, unless the plan and the strategy are as they were.
        edit: Option<Edit>,
    },
    /// A spec that is not acted on: the last revision goes on.
    Refuse { generation: i64, refused: Refused },
    /// An edit that waits for its word to go: the last revision goes on, and does what is asked of it.
    Stage { generation: i64, settings: Box<Settings>, requests: Vec<Request> },
    /// A phase of another manifest is done.
    Release(ExternalWait),
}

/// How a session task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The verdict is stored, and nobody asked for more.
    Finished,
    /// Another process has it.
    Deposed,
    /// The resource is gone.
    Gone,
    /// It was told to stop, and stored what it knew.
    Stopped,
    /// Nothing is heard any more, since another took its session id; it stored what it knew.
    Deaf,
}

/// Hears everything that a session says, and what it is asked for that is not its own to answer.
pub trait Listener: Send + 'static {
    fn hear(&mut self, output: &Output, session: &Session);

    /// A command from a client, or a request for the state or the difference.
    fn pass_on(&mut self, message: InboundMessage);
}

/// A running session task. Dropping it leaves the task running.
#[derive(Debug)]
pub struct Handle {
    orders: mpsc::Sender<Order>,
    stop: CancellationToken,
    forgotten: CancellationToken,
    end: watch::Receiver<Option<End>>,
    task: JoinHandle<()>,
}

impl Handle {
    /// Gives an order; hands it back when the session has ended, or has too many waiting.
    pub fn order(&self, order: Order) -> Result<(), Order> {
        self.orders.try_send(order).map_err(|error| match error {
            mpsc::error::TrySendError::Full(order) | mpsc::error::TrySendError::Closed(order) => order,
        })
    }

    /// The resource is gone: cancel what runs, store nothing more, end. Cannot be missed, however busy the session is.
    pub fn forget(&self) {
        self.forgotten.cancel();
    }

    /// Asks it to store what it knows and end.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Whether it was asked to end: it takes no orders any more, and still may store.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// How it ended, once it has. A task that panicked counts as [`End::Stopped`].
    pub fn ended(&self) -> Option<End> {
        self.end.borrow().or_else(|| self.task.is_finished().then_some(End::Stopped))
    }

    /// To wait for the end by, beside the handle.
    pub fn watch(&self) -> EndWatch {
        EndWatch(self.end.clone())
    }
}

/// Waits for the end of a session task.
#[derive(Debug, Clone)]
pub struct EndWatch(watch::Receiver<Option<End>>);

impl EndWatch {
    /// How it ended; `None` if the task panicked.
    pub async fn end(&mut self) -> Option<End> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|end| *end)
    }
}

/// Starts the task. The first target goes out when the bus is proved and, for a new run, the store has answered.
pub fn spawn(bus: Bus, inbound: &InboundHandle, start: Start, store: impl Store, listener: impl Listener) -> Handle {
    let (orders, orders_in) = mpsc::channel(ORDERS_MAX);
    let (end_to, end) = watch::channel(None);
    let stop = CancellationToken::new();
    let pace = Pace::new(store.pacing());
    // With a verdict stored nothing is under way, and whatever comes next is another run: late words of the last one
    // are nobody's.
    let is_under_way = start.session.verdict().is_none();
    let sink = inbound.register(&start.id).since(start.position.filter(|_| is_under_way));
    let ready = inbound.ready();
    let (pictures, saved) = start_writer(store);
    let must_ask = start.past == Past::Stored && is_under_way;
    let task = Task {
        bus,
        speech: Speech {
            prefix: start.prefix,
            session: start.id,
            origin: start.origin.0,
            holder: format!("{:016x}", rand::rng().next_u64()),
        },
        session: start.session,
        clock: start.clock,
        listener: Box::new(listener),
        asks: HashMap::new(),
        asked: 0,
        sink,
        standing: BusStanding::Unknown,
        proved: None,
        epoch: None,
        is_kept: false,
        past_at: None,
        past_pause: hearing::PAST_RETRY,
        must_ask,
        began: Instant::now(),
        contest: Contest::default(),
        challenged: None,
        frame: Frame { generation: start.generation, refused: None, is_staged: false, changes: 0 },
        pictures,
        pace,
        urgency: Urgency::Now,
        saving: None,
        saved: None,
        store_at: None,
        unsaved_since: None,
        failures: 0,
        is_too_large: false,
    };
    let forgotten = CancellationToken::new();
    let ends = (stop.clone(), forgotten.clone());
    let task = tokio::spawn(async move {
        let end = task.run(start.orders, orders_in, ready, saved, ends).await;
        end_to.send_replace(Some(end));
    });
    Handle { orders, stop, forgotten, end, task }
}

/// Saves pictures one at a time, beside the session, which must not wait for it.
///
/// Boxed, because a channel has room for 32 of what it carries from the beginning: 7 KiB of pictures for each session.
fn start_writer(mut store: impl Store) -> (mpsc::Sender<Box<Picture>>, mpsc::Receiver<Result<(), StoreError>>) {
    let (pictures, mut pictures_in) = mpsc::channel::<Box<Picture>>(1);
    let (results, saved) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(picture) = pictures_in.recv().await {
            let result = store.save(*picture).await;
            if results.send(result).await.is_err() {
                return;
            }
        }
    });
    (pictures, saved)
}

/// What is stored beside the session's record.
struct Frame {
    generation: i64,
    refused: Option<Refused>,
    is_staged: bool,
    /// Counts the changes of this frame.
    changes: u64,
}

/// A version of everything that is stored: the session's, and the frame's.
type Version = (u64, u64);

struct Task {
    bus: Bus,
    clock: Clock,
    speech: Speech,
    session: Session,
    listener: Box<dyn Listener>,
    /// Where askers wait for their answer.
    asks: HashMap<AskId, String>,
    asked: u64,
    sink: Sink,
    standing: BusStanding,
    /// Of the link, as last proved; none while we cannot be sure to hear.
    proved: Option<u64>,
    /// The same at the last resync, when the past was read.
    epoch: Option<u64>,
    /// The stream is read.
    is_kept: bool,
    /// When to ask again for what the stream has and nobody heard, and after how long the next time.
    past_at: Option<Instant>,
    past_pause: Duration,
    /// Runtimes may hold attempts that we do not know of.
    must_ask: bool,
    began: Instant,
    contest: Contest,
    /// Another process believes that it holds the session, or may: from this change of the frame on, a write says who does.
    challenged: Option<u64>,
    frame: Frame,
    pictures: mpsc::Sender<Box<Picture>>,
    pace: Pace,
    urgency: Urgency,
    saving: Option<(Version, Instant)>,
    saved: Option<Version>,
    /// The session waits for this version to be stored before it offers.
    store_at: Option<u64>,
    unsaved_since: Option<Instant>,
    failures: u32,
    is_too_large: bool,
}

impl Task {
    async fn run(
        mut self,
        first: Vec<Order>,
        mut orders: mpsc::Receiver<Order>,
        mut ready: watch::Receiver<Ready>,
        mut saved: mpsc::Receiver<Result<(), StoreError>>,
        (stop, forgotten): (CancellationToken, CancellationToken),
    ) -> End {
        ready.mark_changed();
        self.drain().await;
        for order in first {
            if let Some(end) = self.obey(order).await {
                return end;
            }
        }
        loop {
            if self.is_done() {
                // Whoever orders after the last look hears that nobody takes it, and begins the session anew.
                if let Ok(order) = orders.try_recv() {
                    if let Some(end) = self.obey(order).await {
                        return end;
                    }
                    continue;
                }
                // What slipped in is given again by whoever looks at the resource after this end.
                return End::Finished;
            }
            self.save_if_due();
            let clock = self.session.poll_timeout().map(|due| self.clock.instant_of(due));
            let store = self.store_timer();
            let contest = self.contest.until();
            let past = self.past_at;
            tokio::select! {
                biased;
                () = forgotten.cancelled() => return self.forget().await,
                () = stop.cancelled() => return self.stop(&mut saved, End::Stopped).await,
                result = saved.recv() => {
                    // Nothing would ever be stored again: its panic is the session's.
                    let result = result.expect("the writer ends after the session, unless it panicked");
                    if let Some(end) = self.written(result).await {
                        return end;
                    }
                }
                Some(order) = orders.recv() => if let Some(end) = self.obey(order).await { return end },
                Ok(()) = ready.changed() => {
                    let ready = ready.borrow_and_update().clone();
                    self.heard_of_bus(ready).await;
                }
                arrival = self.sink.next() => match arrival {
                    Some(arrival) => self.arrived(arrival).await,
                    None => return self.stop(&mut saved, End::Deaf).await,
                },
                () = sleep_until(clock.unwrap_or_else(Instant::now)), if clock.is_some() => self.feed(Input::Tick).await,
                () = sleep_until(store.unwrap_or_else(Instant::now)), if store.is_some() => self.set_gate().await,
                () = sleep_until(contest.unwrap_or_else(Instant::now)), if contest.is_some() => self.set_gate().await,
                () = sleep_until(past.unwrap_or_else(Instant::now)), if past.is_some() => self.read_past().await,
            }
        }
    }

    /// The verdict has fallen, and everything is stored: not where it does not fit, and only that was written.
    fn is_done(&self) -> bool {
        let is_stored = self.saving.is_none() && self.saved == Some(self.version()) && !self.is_too_large;
        self.session.verdict().is_some() && is_stored
    }

    // === in ===

    async fn obey(&mut self, order: Order) -> Option<End> {
        match order {
            Order::Obey { generation, settings, requests, edit } => {
                self.reframe(generation, None, false);
                if let Some(edit) = edit {
                    let current = self.session.settings();
                    if settings.shutdown.is_none() && current.shutdown.is_some() {
                        // First, or the new revision would be shut down as it starts. By itself this revives nothing.
                        let cleared = Settings { shutdown: None, ..current.clone() };
                        self.feed(Input::Settings(Box::new(cleared))).await;
                    }
                    self.feed(Input::Edit(edit)).await;
                }
                self.feed(Input::Settings(settings)).await;
                self.feed(Input::Requests(requests)).await;
            }
            Order::Refuse { generation, refused } => self.reframe(generation, Some(refused), false),
            Order::Stage { generation, settings, requests } => {
                self.reframe(generation, None, true);
                // Its target is of the plan that waits.
                let target_phase = self.session.settings().target_phase.clone();
                self.feed(Input::Settings(Box::new(Settings { target_phase, ..*settings }))).await;
                self.feed(Input::Requests(requests)).await;
            }
            Order::Release(wait) => self.feed(Input::Released(wait)).await,
        }
        None
    }

    /// The resource is gone. By the time that is noticed another may have its name and its session id, so the whole
    /// session is cancelled only for peers that know no attempts.
    async fn forget(&mut self) -> End {
        let record = self.session.record();
        let open = record.phases.iter().filter(|row| row.state.is_bound() || row.offers > 0);
        for row in open.filter(|row| !row.state.is_terminal()) {
            let control = match self.session.plan().index_of(row.id.as_str()) {
                Some(ix) if !row.tokenless => {
                    Control::Cancel { phase: row.id.clone(), token: self.session.token(ix), runtime: None }
                }
                _ => Control::CancelSession,
            };
            let message = self.speech.control(&control);
            self.send(message).await;
        }
        self.purge();
        End::Gone
    }

    /// Removes what the bus keeps of the session, up to now: the next one of this name shall not hear of it. Beside the
    /// task, since nobody waits for it, and a sweep comes by if it fails.
    fn purge(&self) {
        let (bus, prefix, session) = (self.bus.clone(), self.speech.prefix.clone(), self.speech.session.clone());
        tokio::spawn(async move {
            let ends = streams::ends(&bus, &prefix).await;
            let purged = async { streams::purge(&bus, &prefix, &session, &ends?).await };
            if let Err(error) = purged.await {
                tracing::debug!(%session, %error, "what the bus keeps of a deleted session was not removed");
            }
        });
    }

    fn reframe(&mut self, generation: i64, refused: Option<Refused>, is_staged: bool) {
        // Said again, as it is every few seconds while others are waited for.
        if self.frame.generation == generation && self.frame.refused == refused && self.frame.is_staged == is_staged {
            return;
        }
        self.frame = Frame { generation, refused, is_staged, changes: self.frame.changes + 1 };
        self.urgency = Urgency::Now;
    }

    // === the engine ===

    async fn feed(&mut self, input: Input) {
        let now = self.clock.now();
        if self.session.poll_timeout().is_some_and(|due| now.duration_since(due) > LATE_MAX) {
            // The process stood still, or its clock was moved: what came meanwhile is not read yet, and silence proves
            // nothing.
            self.session.handle(Input::Resync, now);
            self.drain().await;
        }
        self.session.handle(input, now);
        self.drain().await;
    }

    async fn drain(&mut self) {
        while let Some(output) = self.session.poll_output() {
            self.listener.hear(&output, &self.session);
            self.carry_out(output).await;
        }
    }

    async fn carry_out(&mut self, output: Output) {
        let now = self.clock.now();
        match output {
            Output::Store => {
                self.store_at = Some(self.session.version());
                self.urgency = Urgency::Now;
            }
            Output::Start => {
                let start = self.speech.start(&self.session);
                if start.size_bytes() <= self.bus.payload_bytes_max() {
                    self.send(start).await;
                } else {
                    // Targets carry their phase; only peers that know nothing but `.start` miss something.
                    tracing::warn!(session = %self.speech.session, "the manifest does not fit into one .start message");
                }
            }
            Output::Target(target) => {
                let message = self.speech.target(&self.session, &target, now);
                self.send(message).await;
            }
            Output::Control(control) => {
                let message = self.speech.control(&control);
                self.send(message).await;
            }
            Output::Answer { ask, grant } => {
                if let Some(reply) = self.asks.remove(&ask) {
                    self.send(Speech::grant(reply, grant)).await;
                }
            }
            Output::Handler(effect) => {
                for message in self.speech.handler(&self.session, &effect, now) {
                    self.send(message).await;
                }
            }
            Output::Transition(transition) => {
                if matches!(transition.to, PhaseState::Held)
                    || (transition.to == PhaseState::Failed && self.session.counts().failed == 1)
                {
                    self.urgency = Urgency::Now;
                }
                let message = self.speech.transition(&self.session, &transition, now);
                self.send(message).await;
            }
            Output::Verdict(verdict) => {
                self.urgency = Urgency::Now;
                let message = self.speech.verdict(&self.session, verdict, now);
                self.send(message).await;
            }
            Output::Reopened => self.urgency = Urgency::Now,
            Output::Note(note) => {
                tracing::debug!(session = %self.speech.session, note = note.kind.as_str(), phase = note.phase);
            }
        }
    }

    /// What is lost here is offered or asked for again by the engine's clocks.
    async fn send(&mut self, message: Message) {
        if let Err(error) = self.bus.publish(message).await {
            tracing::debug!(session = %self.speech.session, %error, "a message was not taken by the bus");
        }
    }
}
