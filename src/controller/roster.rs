//! The sessions that this process runs, by the uid of their resource.
//!
//! A uid and not a name, because a resource that is deleted and made anew under its name is another session.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    engine::Strategy,
    manifest::{Digest, ExternalWait},
    sessions::{EndWatch, Handle, Order},
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
pub struct Roster(Arc<Mutex<Sessions>>);

#[derive(Debug, Default)]
struct Sessions {
    by_uid: HashMap<String, Running>,
    /// Those that wait for other manifests. Every phase that ends looks here, among ten thousand sessions that may do
    /// nothing, and most often there are none.
    awaiting: HashSet<String>,
    /// How often each was taken over by another process; until it is over.
    lost: HashMap<String, u32>,
}

impl Sessions {
    fn note_waits(&mut self, uid: &str) {
        if self.by_uid.get(uid).is_some_and(|running| !running.awaits.is_empty()) {
            self.awaiting.insert(uid.to_owned());
        } else {
            self.awaiting.remove(uid);
        }
    }
}

impl Roster {
    fn lock(&self) -> MutexGuard<'_, Sessions> {
        // Whoever panicked held it for a look-up only: the maps are whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn insert(&self, uid: &str, running: Running) {
        let mut sessions = self.lock();
        sessions.by_uid.insert(uid.to_owned(), running);
        sessions.note_waits(uid);
    }

    /// Looks at the session of the resource, if it runs here. One that has ended is struck off first.
    pub fn with<T>(&self, uid: &str, look: impl FnOnce(&mut Running) -> T) -> Option<T> {
        let mut sessions = self.lock();
        if sessions.by_uid.get(uid)?.handle.ended().is_some() {
            sessions.by_uid.remove(uid);
            sessions.note_waits(uid);
            return None;
        }
        let seen = sessions.by_uid.get_mut(uid).map(look);
        sessions.note_waits(uid);
        seen
    }

    pub fn remove(&self, uid: &str) -> Option<Running> {
        let mut sessions = self.lock();
        let removed = sessions.by_uid.remove(uid);
        sessions.lost.remove(uid);
        sessions.note_waits(uid);
        removed
    }

    /// Another process took the session over; how often that was.
    pub fn note_loss(&self, uid: &str) -> u32 {
        let mut sessions = self.lock();
        let times = sessions.lost.entry(uid.to_owned()).or_default();
        *times = times.saturating_add(1);
        *times
    }

    /// Whether it was lost so often, and does not run here.
    pub fn is_lost(&self, uid: &str, times: u32) -> bool {
        self.with(uid, |_| ()).is_none() && self.lock().lost.get(uid) == Some(&times)
    }

    /// Whether it was lost and does not run here.
    pub fn has_lost(&self, uid: &str) -> bool {
        self.with(uid, |_| ()).is_none() && self.lock().lost.contains_key(uid)
    }

    /// It is over, wherever it ran.
    pub fn forget_loss(&self, uid: &str) {
        self.lock().lost.remove(uid);
    }

    /// Takes out those of whose uid and namespace it is true.
    pub fn remove_all(&self, is_it: impl Fn(&str, &str) -> bool) -> Vec<Running> {
        let sessions = &mut *self.lock();
        let removed = sessions.by_uid.extract_if(|uid, running| is_it(uid, &running.namespace));
        let removed: Vec<Running> = removed.map(|(_, running)| running).collect();
        sessions.awaiting.retain(|uid| sessions.by_uid.contains_key(uid));
        removed
    }

    /// Strikes off what has ended.
    pub fn sweep(&self) {
        let sessions = &mut *self.lock();
        sessions.by_uid.retain(|_, running| running.handle.ended().is_none());
        sessions.awaiting.retain(|uid| sessions.by_uid.contains_key(uid));
    }

    /// Tells the sessions of the namespace that wait for it that a phase of another manifest is done.
    pub fn release(&self, namespace: &str, wait: &ExternalWait) {
        let Sessions { by_uid, awaiting, .. } = &mut *self.lock();
        awaiting.retain(|uid| {
            let Some(running) = by_uid.get_mut(uid) else { return false };
            // A session that is too busy to take it is told when its resource is next looked at.
            if running.namespace == namespace
                && running.awaits.contains(wait)
                && running.handle.order(Order::Release(wait.clone())).is_ok()
            {
                running.awaits.remove(wait);
            }
            !running.awaits.is_empty()
        });
    }

    /// Tells all to store what they know and end. They stay until they have: whoever looks must not begin one again beside
    /// its last write.
    pub fn stop_all(&self) -> Vec<EndWatch> {
        let sessions = self.lock();
        let stop = |running: &Running| {
            running.handle.stop();
            running.handle.watch()
        };
        sessions.by_uid.values().map(stop).collect()
    }
}
