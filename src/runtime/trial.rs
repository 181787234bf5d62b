//! An attempt that nobody offered, for tests of a [`super::Work`].

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Options,
    keeping::Keeping,
    wire::Wire,
    work::{Handle, Job},
};
use crate::{bus::Bus, engine::AttemptToken, manifest::PhaseId, protocol::SessionId};

/// A job and its handle, as [`super::Work::run`] gets them, with nobody at the other end: what is logged goes nowhere, and
/// the test says when to stop.
///
/// ```
/// use pmp::runtime::{Handle, Job, Outcome, Trial, Work};
///
/// struct Patient;
///
/// impl Work for Patient {
///     async fn run(&self, _: &Job, handle: &Handle) -> Outcome {
///         handle.progress("waits");
///         handle.cancelled().await;
///         Outcome::Cancelled
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let trial = Trial::of(serde_json::json!({"x-own": 3}));
/// trial.cancel();
/// assert_eq!(Patient.run(&trial.job, &trial.handle).await, Outcome::Cancelled);
/// assert_eq!(trial.progress().as_deref(), Some("waits"));
/// # }
/// ```
pub struct Trial {
    /// Of the session `trial`, the phase `trial`; change what matters.
    pub job: Job,
    /// Hears [`Trial::cancel`].
    pub handle: Handle,
    cancel: CancellationToken,
    progress: watch::Receiver<Option<String>>,
}

impl Trial {
    /// Of a phase with this `spec`; what is no object is an empty one.
    pub fn of(spec: Value) -> Self {
        let spec = if let Value::Object(spec) = spec { spec } else { Map::new() };
        let job = Job {
            session: SessionId::new("trial").expect("it is a session id"),
            phase: PhaseId::new("trial").expect("it is a phase id"),
            token: AttemptToken::received("trial"),
            selector: BTreeMap::new(),
            spec,
        };
        let options = Options::new("trial");
        let wire = Wire {
            bus: Bus::memory(),
            prefix: options.prefix,
            name: options.name.into(),
            heartbeat: options.heartbeat,
            keeping: Arc::new(Keeping::default()),
        };
        let (cancel, (said, progress)) = (CancellationToken::new(), watch::channel(None));
        let handle = Handle::new(wire, &job, cancel.clone(), said, Instant::now());
        Self { job, handle, cancel, progress }
    }

    /// Tells the work to stop, as an operator does.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// What was said last by [`Handle::progress`].
    pub fn progress(&self) -> Option<String> {
        self.progress.borrow().clone()
    }
}
