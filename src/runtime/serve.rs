//! The runtime at work: targets and commands in, one task for each attempt.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use tokio::{
    sync::{Semaphore, watch},
    time::{timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    attempt::panic_text,
    keeping::Keeping,
    labels::Labels,
    ledger::{Key, Ledger, Offered},
    link::{self, Ears},
    options::{Drained, Options, Standing},
    wire::{OrderKind, Wire},
    work::{Decline, Job, Work},
};
use crate::{
    bus::{self, Bus, Subscription},
    protocol::Channel,
};

/// Offers that may wait for a free slot; more are left unanswered, and come again.
const WAITING_MAX: usize = 1024;
/// How long work that was told to stop may take, over and above its own grace, and its report to be taken, before its
/// task is dropped.
const STOP_MAX: Duration = Duration::from_secs(15);
/// How long the last reports may take to reach the server where all of that was used up.
const FAREWELL_MIN: Duration = Duration::from_secs(2);
/// How long tasks that are dropped may take to notice it.
const DROP_MAX: Duration = Duration::from_millis(500);

/// A runtime at work. Dropped, it drops what runs and says nothing of it; [`Runtime::drain`] is the polite way.
#[derive(Debug)]
pub struct Runtime {
    bus: BusHandle,
    ledger: Arc<Mutex<Ledger>>,
    attempts: TaskTracker,
    standing: watch::Receiver<Standing>,
    stages: Stages,
}

/// How far a runtime is on its way out. Each token fires once, in this order.
#[derive(Debug, Clone, Default)]
pub(super) struct Stages {
    /// No new attempts.
    pub(super) closing: CancellationToken,
    /// What runs is told to stop, because the runtime ends.
    pub(super) stopping: CancellationToken,
    /// Nothing is said or heard any more.
    pub(super) over: CancellationToken,
}

/// A bus, under `Debug`.
struct BusHandle(Wire);

impl std::fmt::Debug for BusHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Bus").field(&self.0.name).finish()
    }
}

/// Starts a runtime on a bus that need not be connected yet.
///
/// When this answers, its subscriptions are made: no target published from now on is missed on an in-process bus. Over
/// NATS [`Runtime::standing`] tells when it is heard.
///
/// Fails with what [`Options::check`] and [`Bus::subscribe`] fail with: options that no operator would understand, a closed
/// bus, a connection that took nothing in time.
pub async fn start<W: Work>(bus: Bus, options: Options, work: W) -> Result<Runtime, bus::Error> {
    options.check()?;
    let group = options.labels.queue_group(&work.kind());
    let subject = |channel| match &options.session {
        Some(session) => options.prefix.subject(session, channel),
        None => options.prefix.pattern(channel),
    };
    let heard = [subject(Channel::Control), subject(Channel::Target)];
    // Commands first: an attempt must not be open before it can be stopped.
    let controls = bus.subscribe(&heard[0], None).await?;
    let targets = bus.subscribe(&heard[1], Some(&group)).await?;
    let ears = Ears { patterns: heard, group };
    let wire = Wire {
        bus,
        prefix: options.prefix,
        name: options.name.into(),
        heartbeat: options.heartbeat,
        keeping: Arc::new(Keeping::default()),
    };
    let connecting = Standing::Away { reason: "connecting".to_owned() };
    let (standing_to, standing) = watch::channel(connecting);
    let runtime = Runtime {
        bus: BusHandle(wire.clone()),
        ledger: Arc::new(Mutex::new(Ledger::new(&wire.name))),
        attempts: TaskTracker::new(),
        standing,
        stages: Stages::default(),
    };
    let desk = Arc::new(Desk {
        wire,
        work,
        labels: options.labels,
        ledger: Arc::clone(&runtime.ledger),
        slots: options.concurrency.map(|count| Arc::new(Semaphore::new(count.get().min(Semaphore::MAX_PERMITS)))),
        waiting: Arc::new(Semaphore::new(WAITING_MAX)),
        attempts: runtime.attempts.clone(),
        standing: runtime.standing(),
        stages: runtime.stages.clone(),
    });
    let over = runtime.stages.over.clone();
    tokio::spawn(over.run_until_cancelled_owned(live(desk, ears, targets, controls, standing_to)));
    Ok(runtime)
}

/// Listens, and tells whether it does, also of the last time that it does not.
async fn live<W: Work>(
    desk: Arc<Desk<W>>,
    ears: Ears,
    targets: Subscription,
    controls: Subscription,
    standing: watch::Sender<Standing>,
) {
    let (wire, ledger) = (desk.wire.clone(), Arc::clone(&desk.ledger));
    let listening = async {
        tokio::select! {
            () = link::watch(wire, ledger, ears, &standing) => {}
            () = desk.listen(targets, controls) => {}
        }
    };
    let why = match AssertUnwindSafe(listening).catch_unwind().await {
        Ok(()) => "the bus is closed",
        Err(_) => "it does not listen any more, which is a defect",
    };
    tracing::error!(why, "the runtime hears nothing any more; what runs goes on");
    standing.send_replace(Standing::Away { reason: why.to_owned() });
}

impl Runtime {
    /// Attempts that run now.
    pub fn running(&self) -> usize {
        lock(&self.ledger).running()
    }

    #[cfg(test)]
    pub(super) fn attempts(&self) -> TaskTracker {
        self.attempts.clone()
    }

    /// Whether offers are heard, now and from now on.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Takes nothing new, lets what runs finish for `grace`, stops the rest, reports all of it.
    ///
    /// Takes at most `grace` and some 18 seconds more, which are spent only by work that does not stop, by reports that
    /// the bus does not take, and by a connection that does not prove that it took them.
    pub async fn drain(self, grace: Duration) -> Drained {
        self.stages.closing.cancel();
        self.attempts.close();
        let mut stopped = 0;
        let is_quiet = timeout(grace, self.attempts.wait()).await.is_ok();
        let stop_by = tokio::time::Instant::now() + STOP_MAX;
        if !is_quiet {
            stopped = self.running();
            self.stages.stopping.cancel();
            lock(&self.ledger).cancel_all();
            if timeout_at(stop_by, self.attempts.wait()).await.is_err() {
                tracing::error!(
                    attempts = self.attempts.len(),
                    "attempts that were told to stop do not; they are dropped"
                );
            }
        }
        let farewell_by = stop_by.max(tokio::time::Instant::now() + FAREWELL_MIN);
        let doubtful = link::farewell(&self.bus.0, &self.ledger, &self.standing, farewell_by).await;
        let unsaid = {
            let ledger = lock(&self.ledger);
            doubtful + ledger.unsaid() + ledger.running()
        };
        self.stages.over.cancel();
        if timeout(DROP_MAX, self.attempts.wait()).await.is_err() {
            tracing::error!(attempts = self.attempts.len(), "attempts that were dropped hold their threads");
        }
        Drained { stopped, unsaid }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.stages.closing.cancel();
        // Before work hears that it is to stop, so that nothing it says then is passed on.
        self.stages.over.cancel();
        lock(&self.ledger).cancel_all();
    }
}

/// Ledger calls cannot panic half-way, so a poisoned one is whole.
pub(super) fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all tasks of one runtime share.
pub(super) struct Desk<W> {
    pub(super) wire: Wire,
    pub(super) work: W,
    labels: Labels,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    pub(super) slots: Option<Arc<Semaphore>>,
    pub(super) waiting: Arc<Semaphore>,
    attempts: TaskTracker,
    standing: watch::Receiver<Standing>,
    pub(super) stages: Stages,
}

impl<W: Work> Desk<W> {
    async fn listen(self: Arc<Self>, targets: Subscription, mut controls: Subscription) {
        // Let go of when the runtime closes: a member that takes nothing would swallow its group's offers.
        let mut targets = Some(targets);
        loop {
            let is_open = targets.is_some();
            let offer = async {
                match &mut targets {
                    Some(targets) => targets.next().await,
                    None => std::future::pending().await,
                }
            };
            // Commands before targets: a cancel is never overtaken by the offers behind it.
            tokio::select! {
                biased;
                control = controls.next() => match control {
                    Some(message) => self.obey(&message).await,
                    None => return,
                },
                () = self.stages.closing.cancelled(), if is_open => targets = None,
                target = offer => match target {
                    Some(message) => Self::consider(&self, &message).await,
                    None => return,
                },
            }
        }
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
                    self.wire.say(&known).await;
                }
            }
        }
    }

    /// An offer: answered at once, attended by a task of its own, or left to others.
    async fn consider(this: &Arc<Self>, message: &bus::Message) {
        let Some(offer) = this.wire.read_offer(message) else { return };
        let job = &offer.job;
        let is_deaf = matches!(*this.standing.borrow(), Standing::Denied { .. });
        if is_deaf || !this.labels.match_selector(&job.selector) {
            return;
        }
        let key = Key::of(job);
        let (seen, is_full) = {
            let ledger = lock(&this.ledger);
            (ledger.offered(&key), ledger.is_full())
        };
        match seen {
            Offered::Known(known) => return this.wire.say(&known).await,
            Offered::New if !is_full => {}
            Offered::New | Offered::Pending => return,
        }
        let now = Timestamp::now();
        let answered = if offer.not_after.is_some_and(|limit| limit < now) {
            this.wire.decline_expired(job, now).await
        } else if let Err(decline) = this.judgment(job) {
            this.wire.decline(job, decline.0).await
        } else {
            let cancel = lock(&this.ledger).ask(key, &job.phase);
            let (over, attempt) = (this.stages.over.clone(), Arc::clone(this).attend(offer, cancel));
            this.attempts.spawn(async move {
                tokio::select! {
                    biased;
                    () = over.cancelled() => {}
                    () = attempt => {}
                }
            });
            Ok(())
        };
        if let Err(error) = answered {
            tracing::debug!(%error, "a decline was lost; the offer comes again");
        }
    }

    /// The work's own, which must not end the only task that listens.
    fn judgment(&self, job: &Job) -> Result<(), Decline> {
        catch_unwind(AssertUnwindSafe(|| self.work.judge(job))).unwrap_or_else(|panic| {
            let text = panic_text(&*panic).unwrap_or("it does not say why");
            tracing::error!(phase = %job.phase, panic = text, "the judgment of the runtime's work panicked");
            Err(Decline("Panicked"))
        })
    }
}
