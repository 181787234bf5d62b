//! The sessions that this process runs, by the uid of their resource.
//!
//! A uid and not a name, because a resource that is deleted and made anew under its name is another session.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    engine::Strategy,
    manifest::{Digest, ExternalWait},
    sessions::{Handle, Order},
};

/// A session under way, and what it was last told.
#[derive(Debug)]
pub struct Running {
    pub handle: Handle,
    pub namespace: String,
    pub generation: i64,
    /// The spec of that generation is not acted on.
    pub was_refused: bool,
    pub revision: u64,
    pub digest: Digest,
    pub strategy: Strategy,
    /// Phases of other manifests that it was not told to be done.
    pub awaits: BTreeSet<ExternalWait>,
}

/// All of them. Cloning is a reference count.
#[derive(Debug, Clone, Default)]
pub struct Roster(Arc<Mutex<HashMap<String, Running>>>);

impl Roster {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        // Whoever panicked held it for a look-up only: the map is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn insert(&self, uid: &str, running: Running) {
        self.lock().insert(uid.to_owned(), running);
    }

    /// Looks at the session of the resource, if it runs here. One that has ended is struck off first.
    pub fn with<T>(&self, uid: &str, look: impl FnOnce(&mut Running) -> T) -> Option<T> {
        let mut sessions = self.lock();
        if sessions.get(uid)?.handle.ended().is_some() {
            sessions.remove(uid);
            return None;
        }
        sessions.get_mut(uid).map(look)
    }

    pub fn remove(&self, uid: &str) -> Option<Running> {
        self.lock().remove(uid)
    }

    /// Strikes off what has ended.
    pub fn sweep(&self) {
        self.lock().retain(|_, running| running.handle.ended().is_none());
    }

    /// Tells the sessions of the namespace that wait for it that a phase of another manifest is done.
    pub fn release(&self, namespace: &str, wait: &ExternalWait) {
        for running in self.lock().values_mut().filter(|running| running.namespace == namespace) {
            // A session that is too busy to take it is told when its resource is next looked at.
            if running.awaits.contains(wait) && running.handle.order(Order::Release(wait.clone())).is_ok() {
                running.awaits.remove(wait);
            }
        }
    }

    /// Takes all of them out, to be stopped.
    pub fn take_all(&self) -> Vec<Running> {
        self.lock().drain().map(|(_, running)| running).collect()
    }
}
