//! The wiring of the operator: connection, watches, the loop over results, and the order in which all of it stops.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt, future::join_all};
use kube::{
    Api, ResourceExt,
    runtime::{
        Controller, PredicateConfig, WatchStreamExt,
        controller::{Action, Config as ControllerConfig},
        predicates,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    call::uid,
    command_queue::CommandQueue,
    events::Events,
    heart::{Gate, Heart},
    listener::{PassedOn, Voice},
    options::{Options, Scope},
    reconcile::{self, Context, reconcile, set_aside},
    remains::Remains,
    responder::Responder,
    rivals::Rivals,
    roster::Roster,
    sweep::Sweep,
    trigger::applied,
};
use crate::{
    bus::{self, Inbound, InboundHandle},
    resource::{Holder, PhaseManifest},
    sessions::{EndWatch, Keeper, Origin},
};

/// The name of the one connection.
const CONNECTION: &str = "default";

/// Resources reconciled at a time. Each waits for the API server most of its time; more would only queue there.
const CONCURRENCY: u16 = 16;
/// Failures in a row after which an object is set aside: with doubling pauses some two minutes.
const FAILURES_MAX: u32 = 8;
/// First and longest pause after a failure.
const PAUSE_INITIAL: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_mins(5);
/// How long the sessions may take to store what they know.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);
/// Requests that wait for an answer, and as many commands.
const PASSED_ON_MAX: usize = 1024;
/// Between two signs of life of the loop; the process counts as stuck after 60 s without.
pub(super) const BEAT: Duration = Duration::from_secs(5);

/// Why the operator cannot run at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on the bus")]
    Bus(#[from] bus::Error),
    #[error("{part} ended by a defect or with the bus; nothing is heard without it, and a new process begins anew")]
    Deaf { part: &'static str },
}

/// Runs until `stop`; then lets every session store what it knows, for at most 8 s.
pub async fn run(options: Options, stop: CancellationToken) -> Result<(), Error> {
    let inbound = Inbound::run(options.bus.clone(), options.prefix.clone(), options.origin.clone()).await?;
    let events = Events::start(options.client.clone(), &options.process, options.clock);
    let roster = Roster::default();
    let (commands, commands_out) = mpsc::channel(PASSED_ON_MAX);
    let (requests, requests_out) = mpsc::channel(PASSED_ON_MAX);
    let dropped = Arc::new(Notify::new());
    let passed_on = PassedOn { commands, requests, dropped: Arc::clone(&dropped) };
    let voice = Voice {
        client: options.client.clone(),
        events: events.clone(),
        roster: roster.clone(),
        passed_on: passed_on.clone(),
        label_rules: options.labels.clone(),
    };
    options.view.hear_of(inbound.clone());
    let shared = Shared { options: &options, inbound: &inbound, events: &events, roster: &roster, voice: &voice };
    let loops: Vec<_> =
        options.scope.apis(&options.client).into_iter().map(|api| shared.look_after(api, &stop)).collect();
    let sweeper = sweep(&options, &inbound).map(|sweep| tokio::spawn(sweep.run()));
    let queue = CommandQueue {
        client: options.client.clone(),
        view: options.view.clone(),
        inbound: inbound.clone(),
        connection: CONNECTION.to_owned(),
        dropped,
        clock: options.clock,
    };
    let (client, origin) = (options.client.clone(), options.origin.clone());
    let responder = Responder { client, bus: options.bus.clone(), origin, view: options.view.clone(), passed_on };
    let mut queue = tokio::spawn(queue.run(commands_out));
    let mut responder = tokio::spawn(responder.run(requests_out, inbound.register_rest()));
    let mut loops = join_all(loops);
    let mut until = None;
    let ended = tokio::select! {
        biased;
        _ = &mut loops => Ok(()),
        part = inbound.ended() => Err(Error::Deaf { part }),
        _ = &mut responder => Err(Error::Deaf { part: "the answers to requests" }),
        _ = &mut queue => Err(Error::Deaf { part: "the queue of commands" }),
        // At once: a reconcile that waits for the API server may take longer than we are given.
        () = stop.cancelled() => {
            until = Some(Instant::now() + STOP_TIMEOUT);
            drop(roster.stop_all());
            loops.await;
            Ok(())
        }
    };
    if let Some(sweeper) = sweeper {
        sweeper.abort();
    }
    // With what a last reconcile began meanwhile.
    stop_sessions(&roster, until.unwrap_or_else(|| Instant::now() + STOP_TIMEOUT)).await;
    // Last: what sessions passed on may still become spec.
    responder.abort();
    queue.abort();
    events.flush(Duration::from_secs(2)).await;
    ended
}

/// What the loops of all scopes have in common.
struct Shared<'a> {
    options: &'a Options,
    inbound: &'a InboundHandle,
    events: &'a Events,
    roster: &'a Roster,
    voice: &'a Voice,
}

impl Shared<'_> {
    /// The loop over the resources of one scope.
    fn look_after(
        &self,
        api: Api<PhaseManifest>,
        stop: &CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static + use<> {
        let options = self.options;
        let namespace = api.namespace().map(str::to_owned);
        let filled = options.heart.gate("the cache of PhaseManifests");
        let (objects, changes) = options.view.reflect(api, options.selector.as_ref(), filled.clone());
        let (wake, woken) = futures::channel::mpsc::unbounded();
        let rivals = Rivals {
            client: options.client.clone(),
            bus: options.bus.clone(),
            prefix: options.prefix.clone(),
            origin: options.origin.clone(),
            process: options.process.clone(),
            roster: self.roster.clone(),
            wake: wake.clone(),
        };
        let context = Arc::new(Context {
            client: options.client.clone(),
            keeper: Keeper(Holder { process: options.process.clone(), ..Holder::default() }),
            origin: Origin(options.origin.clone()),
            bus: options.bus.clone(),
            inbound: self.inbound.clone(),
            prefix: options.prefix.clone(),
            connection: CONNECTION.to_owned(),
            serves: options.scope.serves(),
            namespace,
            objects: objects.clone(),
            roster: self.roster.clone(),
            remains: Remains::new(options.bus.clone(), options.prefix.clone(), objects.clone()),
            events: self.events.clone(),
            voice: self.voice.clone(),
            rivals,
            wake,
            clock: options.clock,
        });
        let watch = watch(changes, Arc::clone(&context));
        drive(watch, woken, objects, context, options.heart.clone(), filled, stop.clone())
    }
}

/// What ends sessions whose resource is gone; nothing, unless this operator knows all resources there are.
fn sweep(options: &Options, inbound: &InboundHandle) -> Option<Sweep> {
    let is_all = options.scope == Scope::AllNamespaces && options.selector.is_none();
    is_all.then(|| Sweep {
        bus: options.bus.clone(),
        inbound: inbound.clone(),
        prefix: options.prefix.clone(),
        origin: options.origin.clone(),
        view: options.view.clone(),
    })
}

/// Objects whose spec changed; deletions end sessions at once, also those that nobody told because the watch had lost its
/// place.
fn watch(
    changes: impl Stream<Item = watcher::Result<watcher::Event<PhaseManifest>>> + Send + 'static,
    context: Arc<Context>,
) -> impl Stream<Item = Result<PhaseManifest, watcher::Error>> + Send + 'static {
    let missed = Arc::clone(&context);
    let changes = changes.inspect(move |event| match event {
        Ok(watcher::Event::Delete(object)) => context.gone(object),
        Ok(watcher::Event::Apply(object)) => context.rivals.see(object),
        _ => {}
    });
    applied(changes, move || missed.forget_missing())
        .predicate_filter(predicates::generation, PredicateConfig::default())
}

/// The loop over results of reconciles: logs, beats, and lets no object take the others down.
async fn drive(
    watch: impl Stream<Item = Result<PhaseManifest, watcher::Error>> + Send + 'static,
    woken: impl Stream<Item = ObjectRef<PhaseManifest>> + Send + 'static,
    objects: Store<PhaseManifest>,
    context: Arc<Context>,
    heart: Heart,
    filled: Gate,
    stop: CancellationToken,
) {
    let failures: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let (guarded, counted) = (Arc::clone(&failures), failures);
    let until = stop.clone();
    let swept = context.roster.clone();
    let unfilled = stopped_unfilled(filled, stop);
    let results = Controller::for_stream(watch, objects)
        .reconcile_on(woken)
        .with_config(ControllerConfig::default().concurrency(CONCURRENCY))
        .graceful_shutdown_on(async move { until.cancelled().await })
        .run(
            move |object, context| guard(object, context, Arc::clone(&guarded)),
            move |object, error, context| after_failure(&object, error, &context, &counted),
            context,
        );
    let beat = heart.register("controller");
    let mut beats = interval(BEAT);
    let (mut results, mut unfilled) = (std::pin::pin!(results), std::pin::pin!(unfilled));
    loop {
        tokio::select! {
            // In a fixed order, so that a simulation can be replayed; the beat before the results, which may never pause.
            biased;
            () = &mut unfilled => return,
            _ = beats.tick() => {
                beat.tick();
                swept.sweep();
            }
            result = results.next() => match result {
                Some(Ok((object, _))) => tracing::trace!(resource = %object, "reconciled"),
                Some(Err(error)) => tracing::debug!(%error, "a reconcile did not end well"),
                None => return,
            },
        }
    }
}

/// The process is stopping, and the cache was never filled: kube's controller would wait for that before it ends, though
/// it no longer reads the watch that fills it. Nothing was reconciled yet, so there is nothing to wait for.
async fn stopped_unfilled(filled: Gate, stop: CancellationToken) {
    stop.cancelled().await;
    if filled.is_open() {
        std::future::pending::<()>().await;
    }
}

/// A reconcile that panics sets its own object aside; kube's controller would pass the panic on to all of them.
async fn guard(
    object: Arc<PhaseManifest>,
    context: Arc<Context>,
    failures: Arc<Mutex<HashMap<String, u32>>>,
) -> Result<Action, reconcile::Error> {
    match AssertUnwindSafe(reconcile(Arc::clone(&object), &context)).catch_unwind().await {
        Ok(Ok(action)) => {
            failures.lock().unwrap_or_else(PoisonError::into_inner).remove(uid(&object));
            Ok(action)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => {
            tracing::error!(resource = object.name_any(), "reconciling panicked; the object is set aside");
            set_aside(&context.client, &object, "reconciling it hit a defect of the operator", context.clock).await;
            Ok(Action::await_change())
        }
    }
}

fn after_failure(
    object: &PhaseManifest,
    error: &reconcile::Error,
    context: &Arc<Context>,
    failures: &Mutex<HashMap<String, u32>>,
) -> Action {
    let count = {
        let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(uid(object).to_owned()).or_default();
        *count = count.saturating_add(1);
        *count
    };
    tracing::warn!(
        resource = object.name_any(),
        reason = error.reason(),
        error = error as &dyn std::error::Error,
        count,
        "reconciling failed"
    );
    if count == FAILURES_MAX {
        let (context, object) = (Arc::clone(context), object.clone());
        let why = format!("reconciling it keeps failing with {}", error.reason());
        tokio::spawn(async move { set_aside(&context.client, &object, &why, context.clock).await });
    }
    Action::requeue(PAUSE_INITIAL.saturating_mul(1 << count.saturating_sub(1).min(16)).min(PAUSE_MAX))
}

/// Tells all sessions to store what they know, then waits for them.
async fn stop_sessions(roster: &Roster, until: Instant) {
    let all = join_all(roster.stop_all().into_iter().map(async |mut end: EndWatch| end.end().await));
    if tokio::time::timeout_at(until, all).await.is_err() {
        tracing::warn!("some sessions did not store what they know in time; it is asked for again at the next start");
    }
}
