//! Commands of clients on their way into the spec: one after the other within a session, each tried until it is written or
//! refused for good.
//!
//! A command that the stream has was acknowledged to its sender, so it is not given up: while the API server is away it
//! waits here, and what a process could not finish the next one finds in the stream, behind the place that stands on the
//! resource. It decides nothing about what a command means; that is `commands`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use kube::Client;
use tokio::{
    sync::{Notify, Semaphore, mpsc},
    time::{Instant, interval, sleep},
};

use super::{
    View,
    call::name,
    commands::{self, CommandId, Obeyed, command},
    identity::{is_dealt_with, is_outdated},
};
use crate::{
    bus::{Hearing, InboundHandle, InboundMessage, Keeping, Ready},
    protocol::SessionId,
    resource::PhaseManifest,
    sessions::Clock,
};

/// Commands that wait in all lanes together; more stay where they came from.
const WAITING_MAX: usize = 1024;
/// Written at a time.
const WRITERS_MAX: usize = 16;
/// Between two tries, doubling.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A command that no stream has is what somebody wants now.
const UNKEPT_PATIENCE: Duration = Duration::from_mins(5);
/// Between two looks whether the caches are filled and the stream is read.
const LOOK: Duration = Duration::from_millis(500);
/// How long the caches may take to be filled before what they have must do.
const FILL_MAX: Duration = Duration::from_mins(1);
/// Tries to read what came while no operator ran.
const ARREARS_TRIES: u32 = 5;
const ARREARS_PAUSE: Duration = Duration::from_secs(5);

/// Everything that carrying out needs.
#[derive(Clone)]
pub struct CommandQueue {
    pub client: Client,
    pub view: View,
    pub inbound: InboundHandle,
    /// The actor of commands.
    pub connection: String,
    /// A command found no room on its way here.
    pub dropped: Arc<Notify>,
    pub clock: Clock,
}

/// What waits, by session. A lane whose first command is being carried out has it no more.
#[derive(Default)]
struct Lanes {
    /// In an order, so that a simulation can be replayed.
    waiting: BTreeMap<SessionId, VecDeque<InboundMessage>>,
    busy: BTreeSet<SessionId>,
    count: usize,
}

impl CommandQueue {
    /// Carries out until nobody can send any more.
    pub async fn run(self, mut commands: mpsc::Receiver<InboundMessage>) {
        let turns = Arc::new(Semaphore::new(WRITERS_MAX));
        let mut lanes = Lanes::default();
        let mut at_work = FuturesUnordered::new();
        let mut arrears: Option<BoxFuture<'_, Vec<InboundMessage>>> = Some(self.arrears().boxed());
        loop {
            let started = lanes.start(arrears.is_none());
            at_work.extend(started.into_iter().map(|message| self.carry_out(message, &turns)));
            tokio::select! {
                biased;
                Some(session) = at_work.next(), if !at_work.is_empty() => lanes.done(&session),
                owed = async { arrears.as_mut().expect("asked for only while it is there").await }, if arrears.is_some() => {
                    arrears = None;
                    lanes.put_first(owed);
                }
                // Before anything behind it is dealt with, or its place would count as dealt with, too.
                () = self.dropped.notified(), if arrears.is_none() => arrears = Some(self.arrears().boxed()),
                message = commands.recv(), if lanes.count < WAITING_MAX => match message {
                    Some(message) if self.is_outdated(&message) => {
                        tracing::info!(session = %message.session, "a command is older than what runs and is not obeyed");
                    }
                    Some(message) => lanes.put(message),
                    None => return,
                },
            }
        }
    }

    async fn carry_out(&self, message: InboundMessage, turns: &Semaphore) -> SessionId {
        let session = message.session.clone();
        let Some(control) = command(&message) else { return session };
        let id = CommandId::of_message(&message, self.clock.now());
        let (began, mut pause) = (Instant::now(), PAUSE_FIRST);
        // No word for sessions that are not ours: another operator may have them.
        while let Some(object) = self.view.find(&session, None) {
            let obeyed = {
                let _turn = turns.acquire().await;
                commands::obey(&self.client, &object, control, &id, &self.connection).await
            };
            let error = match obeyed {
                Ok(Obeyed::Refused(why)) => {
                    tracing::warn!(resource = name(&object), %why, "a command was refused");
                    return session;
                }
                Ok(_) => return session,
                Err(error) => error,
            };
            // One that the stream has was promised to whoever said it.
            let is_hopeless = match message.place {
                Some(_) => error.is_final() && !error.is_denied(),
                None => error.is_final() || began.elapsed() > UNKEPT_PATIENCE,
            };
            if is_hopeless {
                tracing::warn!(resource = name(&object), %error, "a command was not carried out");
                return session;
            }
            tracing::warn!(resource = name(&object), %error, "a command is tried again");
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        session
    }

    /// Judged as it comes and not in its turn: what stands before it may begin the session anew, which makes it no older.
    fn is_outdated(&self, message: &InboundMessage) -> bool {
        let Some(place) = message.place.as_ref().filter(|place| place.hearing == Hearing::Late) else { return false };
        self.view.find(&message.session, None).is_some_and(|object| is_outdated(place, &object))
    }

    /// What came while no operator ran and is not dealt with, in the order in which it came. Never ends where nothing is
    /// kept: then no command has a place either.
    async fn arrears(&self) -> Vec<InboundMessage> {
        let mut looks = interval(LOOK);
        let ready = self.inbound.ready();
        let began = Instant::now();
        let may_read = || {
            let is_kept = matches!(&*ready.borrow(), Ready::Yes { keeping: Keeping::Reports, .. });
            // A namespace that we have no rights in is filled never, and must not hold up the others.
            is_kept && (self.view.is_filled() || began.elapsed() > FILL_MAX)
        };
        for _ in 0..ARREARS_TRIES {
            // By looking now and then: of those who wait for a change of one channel, tokio wakes some first by chance.
            while !may_read() {
                looks.tick().await;
            }
            match self.inbound.kept_commands().await {
                Ok(kept) => return self.owed(kept),
                Err(error) => tracing::warn!(%error, "what was commanded while no operator ran cannot be read yet"),
            }
            sleep(ARREARS_PAUSE).await;
        }
        tracing::error!("what was commanded while no operator ran is not obeyed: it cannot be read");
        Vec::new()
    }

    fn owed(&self, kept: Vec<InboundMessage>) -> Vec<InboundMessage> {
        let mut objects: HashMap<SessionId, Option<Arc<PhaseManifest>>> = HashMap::new();
        let mut is_owed = |message: &InboundMessage| {
            let found = || self.view.find(&message.session, None);
            let object = objects.entry(message.session.clone()).or_insert_with(found);
            let (Some(object), Some(place)) = (object, &message.place) else { return false };
            command(message).is_some() && !is_dealt_with(place, object) && !is_outdated(place, object)
        };
        let owed: Vec<InboundMessage> = kept.into_iter().filter(|message| is_owed(message)).collect();
        if !owed.is_empty() {
            tracing::info!(commands = owed.len(), "obeying what was commanded while no operator ran");
        }
        owed
    }
}

impl Lanes {
    fn put(&mut self, message: InboundMessage) {
        self.count += 1;
        self.waiting.entry(message.session.clone()).or_default().push_back(message);
    }

    fn put_first(&mut self, messages: Vec<InboundMessage>) {
        self.count += messages.len();
        for message in messages.into_iter().rev() {
            self.waiting.entry(message.session.clone()).or_default().push_front(message);
        }
    }

    /// The first of every lane that may go on. Before the arrears are known, what has a place waits for what may stand
    /// before it: once it is dealt with, everything up to its place is.
    fn start(&mut self, has_arrears: bool) -> Vec<InboundMessage> {
        let Self { waiting, busy, count } = self;
        let mut started = Vec::new();
        waiting.retain(|session, lane| {
            let may_start = |first: &InboundMessage| has_arrears || first.place.is_none();
            if !busy.contains(session) && lane.front().is_some_and(may_start) {
                busy.insert(session.clone());
                started.extend(lane.pop_front());
                *count -= 1;
            }
            !lane.is_empty()
        });
        started
    }

    fn done(&mut self, session: &SessionId) {
        self.busy.remove(session);
    }
}
