//! One attempt, from the offer to the report that somebody took.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use jiff::Timestamp;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::{MissedTickBehavior, interval_at, sleep, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    ledger::{Key, Known, KnownWhat, Said},
    serve::{Desk, lock},
    wire::{Granted, Offer, Taken},
    work::{Handle, Job, Outcome, Work},
};
use crate::bus;

/// Longest time for which an attempt is asked for, where the target names none.
const ASK_MAX: Duration = Duration::from_mins(1);
/// How long an answer is waited for that may have been yes. It outlasts a restart of the operator or of the bus; a slot
/// is taken meanwhile.
const DOUBT_MAX: Duration = Duration::from_mins(10);
/// Between two `running` because of progress.
const PROGRESS_PACE: Duration = Duration::from_millis(500);
/// First and longest pause before something is said again that the bus did not take.
const SAY_AGAIN_FIRST: Duration = Duration::from_millis(200);
const SAY_AGAIN_MAX: Duration = Duration::from_secs(5);

impl<W: Work> Desk<W> {
    /// One attempt from offer to report.
    pub(super) async fn attend(self: Arc<Self>, offer: Offer, cancel: CancellationToken) {
        let Offer { job, not_after } = offer;
        let limit = tokio::time::Instant::now() + time_left(not_after, Timestamp::now());
        let bound = match timeout_at(limit, self.slot()).await {
            Ok(Some(slot)) => self.ask(&job, limit).await.then_some(slot),
            Ok(None) | Err(_) => None,
        };
        let Some(slot) = bound else {
            lock(&self.ledger).forget(&Key::of(&job));
            return;
        };
        let ended = self.run(&job, cancel).await;
        // The next one need not wait until the bus has taken this one's report.
        drop(slot);
        self.say_until_taken(&ended).await;
    }

    /// A free slot, or nothing if the runtime closes first or too many wait already.
    async fn slot(&self) -> Option<Option<OwnedSemaphorePermit>> {
        let Some(slots) = &self.slots else { return Some(None) };
        let _place = Arc::clone(&self.waiting).try_acquire_owned().ok()?;
        tokio::select! {
            () = self.stages.closing.cancelled() => None,
            slot = Arc::clone(slots).acquire_owned() => slot.ok().map(Some),
        }
    }

    /// True once the operator has bound the attempt to us.
    ///
    /// An answer that got lost may have been yes, and then nobody else is ever offered the attempt. So from the first
    /// question without an answer on, it is asked for past the target's time, while nobody listens (the operator
    /// restarts) and while the runtime closes, until somebody says yes or no.
    async fn ask(&self, job: &Job, limit: tokio::time::Instant) -> bool {
        let (mut pause, mut doubt_until) = (SAY_AGAIN_FIRST, None);
        loop {
            let now = tokio::time::Instant::now();
            let is_given_up = match doubt_until {
                None => self.stages.closing.is_cancelled() || now >= limit,
                Some(until) => self.stages.stopping.is_cancelled() || now >= until,
            };
            if is_given_up {
                return false;
            }
            match self.wire.ask(job).await {
                Granted::Yes => return true,
                Granted::No => return false,
                Granted::Nobody if doubt_until.is_none() => return false,
                Granted::Unknown => {
                    doubt_until.get_or_insert(now + DOUBT_MAX);
                }
                Granted::Nobody | Granted::Unsent => {}
            }
            tokio::select! {
                () = self.stages.stopping.cancelled() => {}
                () = sleep(pause) => pause = (pause * 2).min(SAY_AGAIN_MAX),
            }
        }
    }

    /// Does the work, with a `running` at the start, at every heartbeat and after progress.
    async fn run(&self, job: &Job, cancel: CancellationToken) -> Known {
        let key = Key::of(job);
        let (progress, mut progressed) = watch::channel(None);
        lock(&self.ledger).granted(&key, progressed.clone());
        let handle = Handle::new(self.wire.clone(), job, cancel.clone(), progress, Instant::now());
        self.wire.say(&running(job, None)).await;
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
                outcome = &mut work => break outcome.unwrap_or_else(|panic| panicked(&*panic)),
                Ok(()) = progressed.changed() => {
                    is_news = true;
                    continue;
                }
                () = sleep_until(said_at + PROGRESS_PACE), if is_news => {}
                _ = beat.tick() => {}
            }
            let progress = progressed.borrow().clone();
            self.wire.say(&running(job, progress)).await;
            said_at = tokio::time::Instant::now();
            is_news = false;
        };
        handle.close_log().await;
        let outcome = match outcome {
            // Nobody took the phase back: whoever reads this should know why it did not end.
            Outcome::Cancelled if self.stages.stopping.is_cancelled() => Outcome::failed("the runtime was stopped"),
            outcome => outcome.bounded(),
        };
        lock(&self.ledger).ended(&key, outcome.clone());
        Known { key, phase: job.phase.clone(), what: KnownWhat::Ended(outcome) }
    }

    /// Says it until the bus takes it, or the runtime is over: nobody else knows how this attempt ended.
    async fn say_until_taken(&self, known: &Known) {
        let (mut pause, mut unconfirmed) = (SAY_AGAIN_FIRST, 0);
        loop {
            if self.stages.over.is_cancelled() {
                return;
            }
            match self.wire.conclude(known, unconfirmed).await {
                Ok(taken) => {
                    let now = Instant::now();
                    let said = match taken {
                        Taken::Plain => Said::Plain(now),
                        Taken::Kept => Said::Kept,
                    };
                    return lock(&self.ledger).said(&known.key, said, now);
                }
                Err(error) => {
                    unconfirmed += u32::from(matches!(error, bus::Error::Timeout { .. }));
                    tracing::warn!(phase = %known.phase, %error, "a final report was not taken and is said again");
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(SAY_AGAIN_MAX);
        }
    }
}

/// A panic as the end of an attempt, with its words where it has any.
pub(super) fn panicked(panic: &(dyn Any + Send)) -> Outcome {
    match panic_text(panic) {
        Some(text) => Outcome::failed(format!("the runtime's work panicked: {text}")),
        None => Outcome::failed("the runtime's work panicked"),
    }
}

/// What `panic!` was given, which is a text but for `panic_any`.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> Option<&str> {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str))
}

fn running(job: &Job, progress: Option<String>) -> Known {
    Known { key: Key::of(job), phase: job.phase.clone(), what: KnownWhat::Running { progress } }
}

/// How long the target may still be started.
fn time_left(not_after: Option<Timestamp>, now: Timestamp) -> Duration {
    not_after.map_or(ASK_MAX, |limit| {
        let millis = limit.as_millisecond().saturating_sub(now.as_millisecond());
        Duration::from_millis(u64::try_from(millis).unwrap_or(0))
    })
}
