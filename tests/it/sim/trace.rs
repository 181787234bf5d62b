//! What happened, in order, and what of it must never happen.

use std::{
    fmt::{Arguments, Write as _},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, MutexGuard},
};

use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};

use super::api::Stored;

/// More lines than any schedule that ends can write.
const LINES_MAX: usize = 60_000;

pub struct Trace {
    began: Instant,
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    lines: Vec<String>,
    violations: Vec<String>,
    hash: u64,
}

impl Trace {
    pub fn new() -> Self {
        Self { began: Instant::now(), inner: Mutex::default(), changed: Notify::new() }
    }

    pub fn note(&self, what: Arguments<'_>) {
        let mut line = String::with_capacity(120);
        write!(line, "{:>9} {what}", self.began.elapsed().as_millis()).expect("a string takes every text");
        let mut inner = self.inner();
        let mut hasher = DefaultHasher::new();
        (inner.hash, &line).hash(&mut hasher);
        inner.hash = hasher.finish();
        if inner.lines.len() == LINES_MAX {
            inner.violations.push("it goes on without end".to_owned());
        }
        inner.lines.push(line);
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Something that a promise forbids.
    pub fn violation(&self, what: String) {
        self.note(format_args!("VIOLATION {what}"));
        self.inner().violations.push(what);
    }

    /// The next line after this call. (Of several who wait the first is woken first: a replay needs that.)
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    pub fn violations(&self) -> Vec<String> {
        self.inner().violations.clone()
    }

    pub fn is_broken(&self) -> bool {
        !self.inner().violations.is_empty()
    }

    pub fn hash(&self) -> u64 {
        self.inner().hash
    }

    pub fn lines(&self) -> Vec<String> {
        self.inner().lines.clone()
    }

    /// Of a stored object, short; one in which a process made up a name by chance is told by its version only.
    pub fn digest(object: &Stored) -> String {
        if object.text.contains("\"bus-") {
            return format!("version {}", object["metadata"]["resourceVersion"]);
        }
        let mut hasher = DefaultHasher::new();
        object.text.hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics while holding it")
    }
}
