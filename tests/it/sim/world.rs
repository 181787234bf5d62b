//! What all parts of a simulation share: the trace, the fates, the checks, and the doors of processes.

use std::{fmt::Display, ops::Deref, sync::Arc};

use tokio_util::sync::CancellationToken;

use super::{
    api::{Change, Failure, Stored},
    checks::Checks,
    fates::Fates,
    trace::Trace,
};

/// Cloning is a reference count.
#[derive(Clone)]
pub struct Shared(Arc<Parts>);

pub struct Parts {
    pub trace: Trace,
    pub fates: Fates,
    pub checks: Checks,
}

impl Deref for Shared {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Shared {
    pub fn new(fates: Fates) -> Self {
        Self(Arc::new(Parts { trace: Trace::new(), fates, checks: Checks::default() }))
    }

    /// The API server stored something.
    pub fn committed(&self, change: &Change) {
        self.judged(self.checks.committed(change));
    }

    /// An operator's write was answered by the server, whether or not the operator hears it.
    pub fn wrote(&self, door: &Door, effect: u64, method: &str, path: &str, done: &Result<Arc<Stored>, Failure>) {
        let outcome = match done {
            Ok(object) => format!("ok {}", Trace::digest(object)),
            Err(failure) => format!("{} {}", failure.code, failure.reason),
        };
        self.trace.note(format_args!("{effect} {door} {method} {path}: {outcome}"));
    }

    /// Keeps the violations that a check found.
    pub fn judged(&self, found: Vec<String>) {
        for violation in found {
            self.trace.violation(violation);
        }
    }
}

/// Whose door it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Operator,
    Runtime,
    /// A person, or a test of the fakes: no mishap ever concerns it.
    Person,
}

/// The only way from a process to the world. Shut, nothing passes any more: that is what a crash is to everyone else.
#[derive(Debug, Clone)]
pub struct Door(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    role: Role,
    shut: CancellationToken,
}

impl Door {
    pub fn new(name: &str, role: Role) -> Self {
        Self(Arc::new(Inner { name: name.to_owned(), role, shut: CancellationToken::new() }))
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn is_operator(&self) -> bool {
        self.0.role == Role::Operator
    }

    pub fn is_runtime(&self) -> bool {
        self.0.role == Role::Runtime
    }

    pub fn is_shut(&self) -> bool {
        self.0.shut.is_cancelled()
    }

    pub fn shut(&self) {
        self.0.shut.cancel();
    }

    pub async fn shut_down(&self) {
        self.0.shut.cancelled().await;
    }

    /// Goes on for a process that is alive; a dead one stops here for good.
    pub async fn pass(&self) {
        if self.is_shut() {
            std::future::pending::<()>().await;
        }
    }
}

impl Display for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.name)
    }
}
