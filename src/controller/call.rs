//! One call to the API server under its own deadline, so that a server that hangs stops nobody.
//!
//! The client has no read timeout, because its watches are open for minutes; so every other call goes through here. It
//! must not retry: whoever calls knows better when to try again.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Mutex, PoisonError},
};

use kube::core::{ObjectMeta, Status};

use crate::resource::PhaseManifest;

/// Longest single call.
pub const CALL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// A call that was not answered with what was asked for. `what` completes "could not ...".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not {what}: the API server did not answer within 5 s")]
    Timeout { what: &'static str },
    #[error("could not {what}")]
    Refused { what: &'static str, source: Box<kube::Error> },
}

impl Error {
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(Status::is_not_found)
    }

    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(Status::is_already_exists)
    }

    /// Somebody else wrote in between.
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(Status::is_conflict) && !self.is_already_exists()
    }

    pub fn is_forbidden(&self) -> bool {
        self.status().is_some_and(Status::is_forbidden)
    }

    /// The server understood and will never say otherwise: trying again is of no use.
    pub fn is_final(&self) -> bool {
        self.status().is_some_and(|status| (400..500).contains(&status.code) && !matches!(status.code, 408 | 409 | 429))
    }

    /// One PascalCase word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "ApiTimeout",
            Self::Refused { .. } if self.is_forbidden() => "PermissionDenied",
            Self::Refused { .. } => "ApiError",
        }
    }

    /// What the API server said, where it said anything.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Refused { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            Self::Timeout { .. } => None,
        }
    }
}

/// Waits for the answer, for at most [`CALL_TIMEOUT`].
pub async fn call<T>(what: &'static str, call: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    let answer = match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(Error::Refused { what, source: Box::new(source) }),
        Err(_) => Err(Error::Timeout { what }),
    };
    let outcome = match &answer {
        Ok(_) => Outcome::Done,
        Err(error) if error.status().is_some_and(|status| (400..500).contains(&status.code)) => Outcome::Refused,
        Err(_) => Outcome::Unanswered,
    };
    let mut tally = TALLY.lock().unwrap_or_else(PoisonError::into_inner);
    *tally.entry((what, outcome)).or_default() += 1;
    answer
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Done,
    /// With a 4xx, which is often an answer: not found, already there, written to in between.
    Refused,
    /// Not in time, not at all, or with a 5xx.
    Unanswered,
}

impl Outcome {
    /// One word, for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Unanswered => "unanswered",
        }
    }
}

/// Of the whole process, since there is one API server. As many rows as there are calls in the code, times three.
static TALLY: Mutex<BTreeMap<(&'static str, Outcome), u64>> = Mutex::new(BTreeMap::new());

/// How often each call was made, by what it was for and how it ended.
pub fn tally() -> Vec<(&'static str, Outcome, u64)> {
    let tally = TALLY.lock().unwrap_or_else(PoisonError::into_inner);
    tally.iter().map(|(&(what, outcome), &count)| (what, outcome, count)).collect()
}

/// Which object it is and no more, for what lives as long as a session: spec, status and the fields' owners of ten small
/// phases take some 10 KiB, and would be held twice for each of ten thousand sessions.
pub(crate) fn identity(object: &PhaseManifest) -> PhaseManifest {
    let metadata = ObjectMeta {
        name: object.metadata.name.clone(),
        namespace: object.metadata.namespace.clone(),
        uid: object.metadata.uid.clone(),
        resource_version: object.metadata.resource_version.clone(),
        ..ObjectMeta::default()
    };
    PhaseManifest { metadata, ..PhaseManifest::default() }
}

/// Where the object is, as the API server wrote it; empty only for one that was never stored.
pub(crate) fn namespace(object: &PhaseManifest) -> &str {
    object.metadata.namespace.as_deref().unwrap_or_default()
}

/// The name, as the API server wrote it; empty only for one that was never stored.
pub(crate) fn name(object: &PhaseManifest) -> &str {
    object.metadata.name.as_deref().unwrap_or_default()
}

/// The uid, as the API server wrote it; empty only for one that was never stored.
pub(crate) fn uid(object: &PhaseManifest) -> &str {
    object.metadata.uid.as_deref().unwrap_or_default()
}
