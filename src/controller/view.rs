//! What the rest of the process may see of the cluster: the cache of PhaseManifests, and every change of it as it comes.
//!
//! The operator fills it on the way to its reconciles, `pmp gateway` by a watch of its own. Whoever reads it sees what
//! the watch has told so far, and never more; nothing here writes, and nothing here is believed after a restart.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use futures::{Stream, StreamExt, future::join_all};
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher::{self, Event, watcher},
    },
};
use tokio::{
    sync::broadcast,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    call::{name, namespace, uid},
    claim::Claim,
    heart::{Gate, Heart},
    options::{Scope, Selector},
    run::BEAT,
};
use crate::{
    bus::{Counters, InboundHandle},
    protocol::SessionId,
    resource::PhaseManifest,
};

/// Changes that wait for their slowest reader, who is told when it was too slow. Each names an object and holds none: a
/// reader that stands still would otherwise keep as many old versions of whole objects.
const CHANGES_MAX: usize = 256;

/// A watch that hears nothing for so long is made anew; below what load balancers cut (240 s).
const WATCH_SECONDS: u32 = 200;

/// What happened in the cache.
#[derive(Debug, Clone)]
pub enum Change {
    /// It holds another version of this object: [`View::get`] has it, or a later one.
    Applied { namespace: String, name: String },
    /// The object with this uid is gone.
    Deleted(String),
    /// It was filled anew: anything may be different.
    Refilled,
}

/// The caches of a process. Cloning is a reference count.
#[derive(Clone)]
pub struct View(Arc<Inner>);

struct Inner {
    /// One for each watched scope, and whether it was filled once.
    shelves: RwLock<Vec<(Store<PhaseManifest>, Gate)>>,
    changes: broadcast::Sender<Change>,
    inbound: OnceLock<InboundHandle>,
}

impl Default for View {
    fn default() -> Self {
        Self::new()
    }
}

impl View {
    /// Empty, and not filled before a store was added and all are full.
    pub fn new() -> Self {
        let changes = broadcast::Sender::new(CHANGES_MAX);
        Self(Arc::new(Inner { shelves: RwLock::default(), changes, inbound: OnceLock::new() }))
    }

    /// Every change from now on. A reader that falls behind by 256 is told that it did.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.0.changes.subscribe()
    }

    /// Whether every cache was filled once.
    pub fn is_filled(&self) -> bool {
        let shelves = self.shelves();
        !shelves.is_empty() && shelves.iter().all(|(_, filled)| filled.is_open())
    }

    /// The object as the cache has it.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<PhaseManifest>> {
        let key = ObjectRef::new(name).within(namespace);
        self.shelves().iter().find_map(|(store, _)| store.get(&key))
    }

    /// Whose session this is: of those that name it, in one namespace or in any, who has the id before the others.
    pub fn find(&self, session: &SessionId, within: Option<&str>) -> Option<Arc<PhaseManifest>> {
        let is_it = |object: &PhaseManifest| {
            within.is_none_or(|wanted| namespace(object) == wanted) && Claim::may_be_to(object, session)
        };
        let shelves = self.shelves();
        let candidates = shelves.iter().flat_map(|(store, _)| store.state()).filter(|object| is_it(object));
        candidates
            .filter_map(|object| Some((Claim::of(&object)?, object)))
            .filter(|(claim, _)| claim.session_id == *session)
            .min_by(|(one, _), (other, _)| one.likelihood().cmp(&other.likelihood()))
            .map(|(_, object)| object)
    }

    /// All objects, in no order.
    pub fn all(&self) -> Vec<Arc<PhaseManifest>> {
        self.shelves().iter().flat_map(|(store, _)| store.state()).collect()
    }

    /// What the operator's pump did; nothing where no operator runs.
    pub fn bus_counters(&self) -> Option<Counters> {
        self.0.inbound.get().map(InboundHandle::counters)
    }

    /// Fills caches of the scope until `stop`, without an operator.
    pub async fn follow(
        &self,
        client: Client,
        scope: &Scope,
        selector: Option<&Selector>,
        heart: &Heart,
        stop: CancellationToken,
    ) {
        let watches = scope.apis(&client).into_iter().map(|api| {
            let (_, events) = self.reflect(api, selector, heart.gate("the cache of PhaseManifests"));
            drain(events, heart.clone(), stop.clone())
        });
        join_all(watches).await;
    }

    /// A store of its own, and the events that fill it as they are read; each is told to whoever listens once it is in.
    ///
    /// `filled` opens once the store holds all there is. It is told here and not by `Store::wait_until_ready`, which
    /// wakes only the last of those who wait, and the controller waits too.
    pub(super) fn reflect(
        &self,
        api: Api<PhaseManifest>,
        selector: Option<&Selector>,
        filled: Gate,
    ) -> (Store<PhaseManifest>, impl Stream<Item = watcher::Result<Event<PhaseManifest>>> + Send + 'static + use<>)
    {
        let (store, writer): (_, Writer<PhaseManifest>) = reflector::store();
        self.0.shelves.write().unwrap_or_else(PoisonError::into_inner).push((store.clone(), filled.clone()));
        let mut config = watcher::Config::default().timeout(WATCH_SECONDS);
        if let Some(selector) = selector {
            config = config.labels(selector.as_str());
        }
        let view = self.clone();
        let events = watcher(api, config)
            .default_backoff()
            .modify(|object| {
                // As large as the spec each, and nobody here reads them.
                object.managed_fields_mut().clear();
                object.annotations_mut().remove("kubectl.kubernetes.io/last-applied-configuration");
            })
            .reflect(writer)
            .inspect(move |event| {
                let change = match event {
                    Ok(Event::Apply(object)) => {
                        Some(Change::Applied { namespace: namespace(object).to_owned(), name: name(object).to_owned() })
                    }
                    Ok(Event::Delete(object)) => Some(Change::Deleted(uid(object).to_owned())),
                    Ok(Event::InitDone) => {
                        filled.open();
                        Some(Change::Refilled)
                    }
                    _ => None,
                };
                // Nobody listens: nothing to tell.
                change.map(|change| view.0.changes.send(change).ok());
            });
        (store, events)
    }

    pub(super) fn hear_of(&self, inbound: InboundHandle) {
        // Set once, by the one operator of the process.
        drop(self.0.inbound.set(inbound));
    }

    fn shelves(&self) -> std::sync::RwLockReadGuard<'_, Vec<(Store<PhaseManifest>, Gate)>> {
        self.0.shelves.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the watch to keep its store up to date, and ticks.
async fn drain(
    events: impl Stream<Item = watcher::Result<Event<PhaseManifest>>>,
    heart: Heart,
    stop: CancellationToken,
) {
    let beat = heart.register("watch");
    let mut beats = interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut events = std::pin::pin!(events);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            event = events.next() => match event {
                Some(Ok(_)) => {}
                Some(Err(error)) => tracing::debug!(%error, "the watch is made anew"),
                None => break,
            },
            _ = beats.tick() => beat.tick(),
        }
    }
    beat.retire();
}
