//! The runtime at work: targets and commands in, one task for each attempt.

use std::{
    num::NonZeroUsize,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{MissedTickBehavior, interval_at, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    labels::Labels,
    ledger::{Key, Known, KnownWhat, Ledger, Offered},
    wire::{Granted, Offer, OrderKind, Wire},
    work::{Handle, Job, Outcome, Work},
};
use crate::{
    bus::{self, Bus, Subscription},
    protocol::{Channel, Prefix, SessionId},
};

/// Offers that may wait for a free slot; more are left unanswered, and come again.
const WAITING_MAX: usize = 1024;
/// Longest time for which an attempt is asked for, where the target names none.
const ASK_MAX: Duration = Duration::from_mins(1);
/// Between two `running` because of progress.
const PROGRESS_PACE: Duration = Duration::from_millis(500);
/// First and longest pause before something is said again that the bus did not take.
const SAY_AGAIN_FIRST: Duration = Duration::from_millis(200);
const SAY_AGAIN_MAX: Duration = Duration::from_secs(5);
/// How long work that was told to stop may take, over and above its own grace, before its task is dropped.
const STOP_MAX: Duration = Duration::from_secs(15);

/// How a runtime presents itself.
#[derive(Debug, Clone)]
pub struct Options {
    /// `x-runtime`: unique on the bus.
    pub name: String,
    pub labels: Labels,
    pub prefix: Prefix,
    /// Serve this session only; else every session under the prefix.
    pub session: Option<SessionId>,
    /// Attempts at a time; absent is no bound (the laptop, where the operator's `parallelism` is the bound).
    pub concurrency: Option<NonZeroUsize>,
    /// How often `running` is repeated; announced as `x-heartbeat`.
    pub heartbeat: Duration,
}

impl Options {
    /// Of our SDKs (design, section 5).
    pub const HEARTBEAT: Duration = Duration::from_secs(10);
}

/// A runtime at work. Dropped, it stops everything at once; [`Runtime::drain`] is the polite way.
#[derive(Debug)]
pub struct Runtime {
    ledger: Arc<Mutex<Ledger>>,
    attempts: TaskTracker,
    /// No new attempts.
    closing: CancellationToken,
    /// Nothing is said or heard any more.
    over: CancellationToken,
}

/// Starts a runtime: when this answers, its subscriptions are made, and no target published from now on is missed on
/// an in-process bus.
pub async fn start<W: Work>(bus: Bus, options: Options, work: W) -> Result<Runtime, bus::Error> {
    let group = options.labels.queue_group(work.kind());
    let subject = |channel| match &options.session {
        Some(session) => options.prefix.subject(session, channel),
        None => options.prefix.pattern(channel),
    };
    // Commands first: an attempt must not be open before it can be stopped.
    let controls = bus.subscribe(&subject(Channel::Control), None).await?;
    let targets = bus.subscribe(&subject(Channel::Target), Some(&group)).await?;
    let runtime = Runtime {
        ledger: Arc::new(Mutex::new(Ledger::new(&options.name))),
        attempts: TaskTracker::new(),
        closing: CancellationToken::new(),
        over: CancellationToken::new(),
    };
    let desk = Arc::new(Desk {
        wire: Wire { bus, prefix: options.prefix, name: options.name.into(), heartbeat: options.heartbeat },
        work,
        labels: options.labels,
        ledger: Arc::clone(&runtime.ledger),
        slots: options.concurrency.map(|count| Arc::new(Semaphore::new(count.get()))),
        waiting: Arc::new(Semaphore::new(WAITING_MAX)),
        attempts: runtime.attempts.clone(),
        closing: runtime.closing.clone(),
        over: runtime.over.clone(),
    });
    tokio::spawn(desk.listen(targets, controls));
    Ok(runtime)
}

impl Runtime {
    /// Attempts that run now.
    pub fn running(&self) -> usize {
        lock(&self.ledger).running()
    }

    /// Takes nothing new, lets what runs finish for `grace`, stops the rest, reports all of it.
    pub async fn drain(self, grace: Duration) {
        self.closing.cancel();
        self.attempts.close();
        if timeout(grace, self.attempts.wait()).await.is_err() {
            lock(&self.ledger).cancel_all();
            if timeout(STOP_MAX, self.attempts.wait()).await.is_err() {
                tracing::error!(attempts = self.running(), "work that was told to stop does not; it is dropped");
            }
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.closing.cancel();
        self.over.cancel();
        lock(&self.ledger).cancel_all();
    }
}

/// Ledger calls cannot panic half-way, so a poisoned one is whole.
fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all tasks of one runtime share.
struct Desk<W> {
    wire: Wire,
    work: W,
    labels: Labels,
    ledger: Arc<Mutex<Ledger>>,
    slots: Option<Arc<Semaphore>>,
    waiting: Arc<Semaphore>,
    attempts: TaskTracker,
    closing: CancellationToken,
    over: CancellationToken,
}

impl<W: Work> Desk<W> {
    async fn listen(self: Arc<Self>, mut targets: Subscription, mut controls: Subscription) {
        loop {
            // Commands before targets: a cancel is never overtaken by the offers behind it.
            tokio::select! {
                biased;
                () = self.over.cancelled() => return,
                control = controls.next() => match control {
                    Some(message) => self.obey(&message).await,
                    None => break,
                },
                target = targets.next(), if !self.closing.is_cancelled() => match target {
                    Some(message) => Self::consider(&self, &message).await,
                    None => break,
                },
            }
        }
        tracing::error!("the bus is gone; the runtime hears nothing any more");
    }

    async fn obey(&self, message: &bus::Message) {
        let Some(order) = self.wire.read_order(message) else { return };
        match order.command {
            OrderKind::Cancel => {
                lock(&self.ledger).cancel(&order.session, &order.scope);
            }
            OrderKind::Report => {
                let known = lock(&self.ledger).report(&order.session, &order.scope);
                for known in known {
                    self.say(&known).await;
                }
            }
        }
    }

    /// An offer: answered at once, attended by a task of its own, or left to others.
    async fn consider(this: &Arc<Self>, message: &bus::Message) {
        let Some(offer) = this.wire.read_offer(message) else { return };
        let job = &offer.job;
        if !this.labels.match_selector(&job.selector) {
            return;
        }
        let key = Key::of(job);
        let seen = lock(&this.ledger).offered(&key);
        match seen {
            Offered::Pending => return,
            Offered::Known(known) => return this.say(&known).await,
            Offered::New => {}
        }
        let now = Timestamp::now();
        let answered = if offer.not_after.is_some_and(|limit| limit < now) {
            this.wire.decline_expired(job, now).await
        } else if let Err(decline) = this.work.judge(job) {
            this.wire.decline(job, decline.0).await
        } else {
            let cancel = lock(&this.ledger).ask(key, &job.phase);
            this.attempts.spawn(Arc::clone(this).attend(offer, cancel));
            Ok(())
        };
        if let Err(error) = answered {
            tracing::debug!(%error, "a decline was lost; the offer comes again");
        }
    }

    /// One attempt from offer to report.
    async fn attend(self: Arc<Self>, offer: Offer, cancel: CancellationToken) {
        let Offer { job, not_after } = offer;
        let limit = time_left(not_after, Timestamp::now());
        let bound = timeout(limit, async {
            let slot = self.slot().await?;
            self.ask(&job).await.then_some(slot)
        });
        let Ok(Some(slot)) = bound.await else {
            lock(&self.ledger).forget(&Key::of(&job));
            return;
        };
        let ended = self.run(&job, cancel).await;
        drop(slot);
        self.say_until_taken(&ended).await;
    }

    /// A free slot, or nothing if the runtime closes first or too many wait already.
    async fn slot(&self) -> Option<Option<OwnedSemaphorePermit>> {
        let Some(slots) = &self.slots else { return Some(None) };
        let _place = Arc::clone(&self.waiting).try_acquire_owned().ok()?;
        tokio::select! {
            () = self.closing.cancelled() => None,
            slot = Arc::clone(slots).acquire_owned() => slot.ok().map(Some),
        }
    }

    /// True once the operator has bound the attempt to us. An answer that got lost is asked for again: it may have
    /// been yes, and then nobody else will ever be offered the attempt.
    async fn ask(&self, job: &Job) -> bool {
        let mut pause = SAY_AGAIN_FIRST;
        loop {
            if self.closing.is_cancelled() {
                return false;
            }
            match self.wire.ask(job).await {
                Granted::Yes => return true,
                Granted::No => return false,
                Granted::Unknown => sleep(pause).await,
            }
            pause = (pause * 2).min(SAY_AGAIN_MAX);
        }
    }

    /// Does the work, with a `running` at the start, at every heartbeat and after progress.
    async fn run(&self, job: &Job, cancel: CancellationToken) -> Known {
        let key = Key::of(job);
        let (progress, mut progressed) = watch::channel(None);
        lock(&self.ledger).granted(&key, progressed.clone());
        let handle = Handle::new(self.wire.clone(), job, cancel.clone(), progress, Instant::now());
        self.say(&self.running(job, None)).await;
        let heartbeat = self.wire.heartbeat;
        let mut beat = interval_at(tokio::time::Instant::now() + heartbeat, heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said_at = tokio::time::Instant::now();
        let mut is_news = false;
        let work = async {
            // Taken back between ask and grant.
            if cancel.is_cancelled() { Outcome::Cancelled } else { self.work.run(job, &handle).await }
        };
        let work = AssertUnwindSafe(work).catch_unwind();
        tokio::pin!(work);
        let outcome = loop {
            tokio::select! {
                outcome = &mut work => break outcome.unwrap_or_else(|_| Outcome::failed("the runtime's work panicked")),
                Ok(()) = progressed.changed() => {
                    is_news = true;
                    continue;
                }
                () = sleep_until(said_at + PROGRESS_PACE), if is_news => {}
                _ = beat.tick() => {}
            }
            let progress = progressed.borrow().clone();
            self.say(&self.running(job, progress)).await;
            said_at = tokio::time::Instant::now();
            is_news = false;
        };
        handle.close_log().await;
        lock(&self.ledger).ended(&key, outcome.clone(), Instant::now());
        Known { key, phase: job.phase.clone(), what: KnownWhat::Ended(outcome) }
    }

    #[allow(clippy::unused_self, reason = "reads as a sentence beside say")]
    fn running(&self, job: &Job, progress: Option<String>) -> Known {
        Known { key: Key::of(job), phase: job.phase.clone(), what: KnownWhat::Running { progress } }
    }

    /// Says it once. What is lost is said again at the next heartbeat, offer or `x-report`.
    async fn say(&self, known: &Known) {
        if let Err(error) = self.wire.report(known).await {
            tracing::debug!(phase = %known.phase, %error, "a report was not taken");
        }
    }

    /// Says it until the bus takes it, or the runtime is over: nobody else knows how this attempt ended.
    async fn say_until_taken(&self, known: &Known) {
        let mut pause = SAY_AGAIN_FIRST;
        while let Err(error) = self.wire.report(known).await {
            tracing::warn!(phase = %known.phase, %error, "a final report was not taken and is said again");
            tokio::select! {
                () = self.over.cancelled() => return,
                () = sleep(pause) => pause = (pause * 2).min(SAY_AGAIN_MAX),
            }
        }
    }
}

/// How long the target may still be started.
fn time_left(not_after: Option<Timestamp>, now: Timestamp) -> Duration {
    not_after.map_or(ASK_MAX, |limit| {
        let millis = limit.as_millisecond().saturating_sub(now.as_millisecond());
        Duration::from_millis(u64::try_from(millis).unwrap_or(0))
    })
}
