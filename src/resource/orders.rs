//! The spec, parsed once into what the operator obeys: checked, without options, in the engine's own types.

use std::{num::NonZeroU32, time::Duration};

use super::{
    phases::Phases,
    spec::{self, ConfigMapKey, PhaseManifestSpec, UpdatePolicy},
    written::Number,
};
use crate::{
    engine::{Backoff, FailurePolicy, Pace, Request, RequestAction, Settings, Shutdown, Strategy, Timeouts},
    manifest::{Jitter, PhaseId, Plan, Problem, Reason, parse_duration},
    protocol::SessionId,
};

/// Old revisions kept where the spec does not say.
const REVISION_HISTORY_LIMIT: usize = 10;

/// Everything in the spec but the phases themselves.
#[derive(Debug, Clone, PartialEq)]
pub struct Orders<'a> {
    pub manifest: ManifestSource<'a>,
    pub settings: Settings,
    pub strategy: Strategy,
    pub requests: Vec<Request>,
    pub update_policy: UpdatePolicy,
    /// Show what would change, and run nothing of it.
    pub staged: bool,
    pub dry_run: bool,
    /// As written; absent is [`SessionId::default_for`].
    pub session_id: Option<&'a str>,
    /// Name of a configured NATS connection.
    pub connection: &'a str,
    pub ttl_after_finished: Option<Duration>,
    pub revision_history_limit: usize,
}

/// Where the phases are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ManifestSource<'a> {
    /// In the spec, as written: for `manifest` to judge. Nothing where the spec names no phases at all.
    Inline(Option<&'a Phases>),
    ConfigMap(&'a ConfigMapKey),
}

impl<'a> Orders<'a> {
    /// Reads the spec; every problem that the schema cannot refuse is answered at once, with a pointer into the object.
    pub fn new(spec: &'a PhaseManifestSpec) -> Result<Self, Vec<Problem>> {
        let mut found = Problems::default();
        let orders = Self {
            manifest: manifest_source(spec, &mut found),
            settings: settings(spec, &mut found),
            strategy: strategy(spec.strategy),
            requests: requests(spec.requests.as_deref().unwrap_or_default(), &mut found),
            update_policy: spec.update_policy.unwrap_or_default(),
            staged: spec.staged == Some(true),
            dry_run: spec.dry_run == Some(true),
            session_id: set(spec.session_id.as_deref()),
            connection: set(spec.connection.as_deref()).unwrap_or("default"),
            ttl_after_finished: found.duration(spec.ttl_after_finished.as_ref(), "/spec/ttlAfterFinished"),
            revision_history_limit: spec
                .revision_history_limit
                .and_then(|limit| usize::try_from(limit).ok())
                .unwrap_or(REVISION_HISTORY_LIMIT),
        };
        if let Some(id) = orders.session_id
            && SessionId::new(id).is_err()
        {
            found.add(
                Reason::BadId,
                "/spec/sessionId",
                format!("{id:?} is no session id"),
                "use 1 to 128 letters, digits, dashes and underscores",
            );
        }
        if found.0.is_empty() { Ok(orders) } else { Err(found.0) }
    }

    /// The settings of a spec that is not acted on, each as far as it can be read: what pauses stays paused, though an edit
    /// wrote nonsense beside it.
    pub fn readable_settings(spec: &PhaseManifestSpec) -> Settings {
        settings(spec, &mut Problems::default())
    }

    /// What in the spec does not fit to its manifest: a target phase that is not in it.
    pub fn problems_with(&self, plan: &Plan) -> Vec<Problem> {
        let mut found = Problems::default();
        if let Some(id) = &self.settings.target_phase
            && plan.index_of(id.as_str()).is_none()
        {
            let message = format!("there is no phase {:?}", id.as_str());
            found.add(Reason::UnknownDependency, "/spec/targetPhase", message, "name a phase of the manifest");
        }
        found.0
    }
}

fn manifest_source<'a>(spec: &'a PhaseManifestSpec, found: &mut Problems) -> ManifestSource<'a> {
    match (&spec.phases, &spec.manifest_from) {
        (phases, None) => ManifestSource::Inline(phases.as_ref()),
        (None, Some(from)) => ManifestSource::ConfigMap(&from.config_map),
        (Some(phases), Some(_)) => {
            let message = "the phases are given twice, in phases and by manifestFrom".to_owned();
            found.add(Reason::BadValue, "/spec/manifestFrom", message, "remove one of them");
            ManifestSource::Inline(Some(phases))
        }
    }
}

fn settings(spec: &PhaseManifestSpec, found: &mut Problems) -> Settings {
    Settings {
        pace: if spec.suspend == Some(true) { Pace::Suspended } else { Pace::Going },
        shutdown: match spec.shutdown {
            None | Some(spec::Shutdown::Off) => None,
            Some(spec::Shutdown::Drain) => Some(Shutdown::Drain),
            Some(spec::Shutdown::Cancel) => Some(Shutdown::Cancel),
        },
        target_phase: set(spec.target_phase.as_deref()).and_then(|id| found.phase_id(id, "/spec/targetPhase")),
        parallelism: spec.parallelism.and_then(|bound| u32::try_from(bound).ok()).and_then(NonZeroU32::new),
        failure_policy: match spec.failure_policy {
            None | Some(spec::FailurePolicy::Stop) => FailurePolicy::Stop,
            Some(spec::FailurePolicy::Isolate) => FailurePolicy::Isolate,
        },
        backoff: spec.backoff.as_ref().map_or_else(Backoff::default, |written| backoff(written, found)),
        timeouts: spec.timeouts.as_ref().map_or_else(Timeouts::default, |written| timeouts(written, found)),
    }
}

fn backoff(written: &spec::Backoff, found: &mut Problems) -> Backoff {
    let default = Backoff::default();
    Backoff {
        initial: found.duration(written.initial.as_ref(), "/spec/backoff/initial").unwrap_or(default.initial),
        factor: found.factor(written.factor.as_ref(), "/spec/backoff/factor").unwrap_or(default.factor),
        max: found.duration(written.max.as_ref(), "/spec/backoff/max").unwrap_or(default.max),
        jitter: match written.jitter {
            None | Some(spec::Jitter::Full) => Jitter::Full,
            Some(spec::Jitter::None) => Jitter::None,
        },
    }
}

fn timeouts(written: &spec::Timeouts, found: &mut Problems) -> Timeouts {
    let default = Timeouts::default();
    let mut timeouts = Timeouts {
        offer: found.duration(written.offer.as_ref(), "/spec/timeouts/offer").unwrap_or(default.offer),
        start: found.duration(written.start.as_ref(), "/spec/timeouts/start"),
        attempt: found.duration(written.attempt.as_ref(), "/spec/timeouts/attempt"),
        heartbeat: found.duration(written.heartbeat.as_ref(), "/spec/timeouts/heartbeat"),
        cancel: found.duration(written.cancel.as_ref(), "/spec/timeouts/cancel").unwrap_or(default.cancel),
        revision: found.duration(written.revision.as_ref(), "/spec/timeouts/revision"),
    };
    if timeouts.offer.is_zero() {
        let message = "an offer that nobody has time to answer is never taken".to_owned();
        found.add(Reason::OutOfRange, "/spec/timeouts/offer", message, "leave it empty for the default of 5s");
        timeouts.offer = default.offer;
    }
    timeouts
}

fn strategy(written: Option<spec::Strategy>) -> Strategy {
    match written {
        None | Some(spec::Strategy::Hybrid) => Strategy::Hybrid,
        Some(spec::Strategy::Directed) => Strategy::Directed,
        Some(spec::Strategy::Runtime) => Strategy::Runtime,
    }
}

fn requests(written: &[spec::Request], found: &mut Problems) -> Vec<Request> {
    let request = |(i, written): (usize, &spec::Request)| {
        let action = match written.action {
            spec::RequestAction::Retry => RequestAction::Retry,
            spec::RequestAction::Skip => RequestAction::Skip,
            spec::RequestAction::Use => RequestAction::Use,
            spec::RequestAction::Complete => RequestAction::Complete,
            spec::RequestAction::Restart => RequestAction::Restart,
        };
        let pointer = format!("/spec/requests/{i}/phase");
        let phase = match (set(written.phase.as_deref()), action) {
            (None, RequestAction::Restart) => None,
            (Some(id), action) if action != RequestAction::Restart => Some(found.phase_id(id, &pointer)?),
            (named, _) => {
                let (message, hint) = match named {
                    Some(_) => ("Restart is of the whole session", "remove the phase, or ask for Retry"),
                    None => ("the request names no phase", "name the phase it is about"),
                };
                found.add(Reason::BadValue, &pointer, message.to_owned(), hint);
                return None;
            }
        };
        Some(Request { token: written.token.clone(), action, phase })
    };
    written.iter().enumerate().filter_map(request).collect()
}

/// An empty text is an absent one.
fn set(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

/// What was found wrong so far.
#[derive(Debug, Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, reason: Reason, pointer: &str, message: String, hint: &str) {
        self.0.push(Problem { reason, pointer: pointer.to_owned(), message, hint: Some(hint.to_owned()), place: None });
    }

    fn phase_id(&mut self, text: &str, pointer: &str) -> Option<PhaseId> {
        let id = PhaseId::new(text);
        if let Err(error) = id {
            self.add(
                Reason::BadId,
                pointer,
                format!("{text:?} names no phase: {error}"),
                "write the id as in the manifest",
            );
        }
        id.ok()
    }

    fn duration(&mut self, written: Option<&Number>, pointer: &str) -> Option<Duration> {
        let text = written?.to_string();
        let text = set(Some(&text))?;
        let duration = parse_duration(text);
        if let Err(error) = duration {
            let message = format!("{text:?} {error}");
            self.add(Reason::BadDuration, pointer, message, "write it as 300ms, 30s, 5m, 1h or a number of seconds");
        }
        duration.ok()
    }

    fn factor(&mut self, written: Option<&Number>, pointer: &str) -> Option<f64> {
        let text = written?.to_string();
        let text = set(Some(&text))?;
        let factor = text.parse().ok().filter(|factor| (1.0..=100.0).contains(factor));
        if factor.is_none() {
            self.add(Reason::OutOfRange, pointer, format!("{text:?} is no factor"), "write a number from 1 to 100");
        }
        factor
    }
}

#[cfg(test)]
mod tests;
