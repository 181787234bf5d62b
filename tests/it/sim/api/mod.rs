//! An API server in the process, under a real `kube::Client`: no sockets, no second thread, every fault on demand.
//!
//! [`store`] has the rules, [`http`] the requests, [`watch`] the streams. `tests/it/sim/conformance.rs` holds it to a real
//! kube-apiserver, law by law.

mod http;
mod store;
mod watch;

use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use kube::Client;
use pmp::sessions::Clock;
use serde_json::Value;
use tokio::sync::Notify;

pub use self::store::{Change, Failure, Kind, Stored};
use self::store::{Key, Part, Preconditions, Store};
use super::world::{Door, Shared};

/// The server. Cloning is a reference count.
#[derive(Clone)]
pub struct ApiServer(Arc<Inner>);

struct Inner {
    store: Mutex<Store>,
    /// Told of every change, and when the history is cut. A `Notify` wakes in the order in which was waited; a `watch`
    /// throws dice.
    changed: Notify,
    clock: Clock,
    shared: Shared,
}

impl ApiServer {
    pub fn new(clock: Clock, shared: Shared) -> Self {
        Self(Arc::new(Inner { store: Mutex::default(), changed: Notify::new(), clock, shared }))
    }

    /// A client whose every call goes through this door.
    pub fn client(&self, door: &Door) -> Client {
        let (server, door) = (self.clone(), door.clone());
        let serve = move |request| {
            let (server, door) = (server.clone(), door.clone());
            async move { Ok::<_, std::convert::Infallible>(http::serve(server, door, request).await) }
        };
        Client::new(tower::service_fn(serve), "default")
    }

    /// Ends all watches and cuts the history: what a watcher has not seen by now it never sees.
    pub fn compact(&self) {
        self.store().compact();
        self.0.changed.notify_waiters();
    }

    /// The resource as it is, as a person reads it.
    pub fn manifest(&self, name: &str) -> Option<Arc<Stored>> {
        self.store().get(&manifest_key(name)).ok()
    }

    pub fn create_manifest(&self, name: &str, spec: &Value) {
        let object = serde_json::json!({"metadata": {"name": name}, "spec": spec});
        let made = self.change(|store, now| store.create(Kind::PhaseManifest, NAMESPACE, object, now));
        made.expect("a person makes no resource twice");
    }

    /// A merge patch onto the spec, as a person makes it.
    pub fn edit_manifest(&self, name: &str, spec: &Value) {
        let patch = serde_json::json!({"spec": spec});
        self.change(|store, _| store.patch(&manifest_key(name), Part::Main, &patch)).expect("it is there");
    }

    pub fn delete_manifest(&self, name: &str) {
        self.change(|store, _| store.delete(&manifest_key(name), &Preconditions::default())).expect("it is there");
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.store.lock().expect("nobody panics while holding it")
    }

    fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Does one thing to the store, and tells watches and checks if that changed anything.
    fn change(&self, change: impl FnOnce(&mut Store, &str) -> store::Answer) -> store::Answer {
        let now = format!("{:.0}", self.now());
        let mut store = self.store();
        let before = store.version();
        let answer = change(&mut store, &now);
        let news = (store.version() != before).then(|| store.last_change().cloned()).flatten();
        drop(store);
        if let Some(change) = news {
            self.0.shared.committed(&change);
            self.0.changed.notify_waiters();
        }
        answer
    }
}

/// Where all manifests of a simulation are.
pub const NAMESPACE: &str = "sim";

fn manifest_key(name: &str) -> Key {
    Key { kind: Kind::PhaseManifest, namespace: NAMESPACE.to_owned(), name: name.to_owned() }
}
