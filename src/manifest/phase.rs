//! The phase as everything past the edge sees it: checked, typed, one spelling.
//!
//! Nothing here forgives and nothing here parses: [`super::dialect`] turns what people write into these types.
//! A value of these types is legal on its own; that phases fit *together* is what [`super::Plan`] adds.

use std::{borrow::Borrow, collections::BTreeMap, fmt, sync::Arc, time::Duration};

use serde_json::Value;

/// Longest phase id in bytes (the longest Kubernetes name; ids are kept in status rows and labels of people's minds).
pub const PHASE_ID_BYTES_MAX: usize = 253;

/// The name of a phase, unique in its manifest: 1 to 253 bytes of printable text.
///
/// Ids never become subject tokens or file names, so `.`, `*`, `/` and spaces are fine (protocol, "Top-Level Fields").
/// Cloning is a reference count.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhaseId(Arc<str>);

/// Why a text is no phase id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PhaseIdError {
    #[error("the id is empty")]
    Empty,
    #[error("the id is longer than 253 bytes")]
    TooLong,
    #[error("the id holds a character that is not printable")]
    NotPrintable,
}

impl PhaseId {
    /// Checks length and characters; control characters, line breaks and other unprintables are refused.
    pub fn new(text: &str) -> Result<Self, PhaseIdError> {
        if text.is_empty() {
            return Err(PhaseIdError::Empty);
        }
        if text.len() > PHASE_ID_BYTES_MAX {
            return Err(PhaseIdError::TooLong);
        }
        if text.chars().any(is_unprintable) {
            return Err(PhaseIdError::NotPrintable);
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Control characters, and the separators and directional marks with which one line can pass for another.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

impl fmt::Display for PhaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PhaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Borrow<str> for PhaseId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// One node of the DAG: `{kind, id, spec}` without the kind, which is always `Phase`.
#[derive(Debug, Clone, PartialEq)]
pub struct Phase {
    pub id: PhaseId,
    pub spec: PhaseSpec,
}

/// What a phase asks for (protocol, "Phase Specification Schema"); absent fields hold their defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct PhaseSpec {
    /// For people; never judged.
    pub description: String,
    /// `selector.matchLabels`: a runtime takes the phase only if it carries all of these. Empty matches every runtime.
    pub selector: BTreeMap<String, String>,
    pub instance_mode: InstanceMode,
    pub wait_for: WaitFor,
    /// Total tries in a run, at least 1.
    pub max_attempts: u32,
    pub on_failure: Handler<FailureAction>,
    pub on_success: Handler<SuccessAction>,
    /// `x-timeouts`; what is absent falls back to the resource's `timeouts`.
    pub timeouts: PhaseTimeouts,
    /// `x-backoff`; what is absent falls back to the resource's `backoff`.
    pub backoff: PhaseBackoff,
    /// `x-priority`: higher goes first among ready phases.
    pub priority: i32,
    /// `x-waitFor`: phases of other manifests in the same namespace.
    pub wait_for_others: Vec<ExternalWait>,
    /// `x-onExhausted`.
    pub on_exhausted: OnExhausted,
    /// Every `x-*` field as it was written, ours among them: kept and passed on untouched.
    pub extensions: BTreeMap<String, Value>,
}

impl Default for PhaseSpec {
    fn default() -> Self {
        Self {
            description: String::new(),
            selector: BTreeMap::new(),
            instance_mode: InstanceMode::default(),
            wait_for: WaitFor::default(),
            max_attempts: 1,
            on_failure: Handler::default(),
            on_success: Handler::default(),
            timeouts: PhaseTimeouts::default(),
            backoff: PhaseBackoff::default(),
            priority: 0,
            wait_for_others: Vec::new(),
            on_exhausted: OnExhausted::default(),
            extensions: BTreeMap::new(),
        }
    }
}

/// When a phase becomes wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InstanceMode {
    /// From the start.
    #[default]
    Immediate,
    /// Only when something wanted waits for it, or a person asks.
    OnUse,
}

/// `waitFor`: ids of this manifest, and the longest the phase may wait for them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WaitFor {
    /// In the order written, without repeats.
    pub phases: Vec<PhaseId>,
    /// Counted from the moment the phase became wanted in this run, less paused time.
    pub timeout: Option<Duration>,
}

/// One entry of `x-waitFor`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExternalWait {
    /// Name of a PhaseManifest in the same namespace.
    pub manifest: String,
    pub phase: PhaseId,
}

/// What to do on a run's final outcome (protocol: `onFailure`, `onSuccess`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Handler<Action> {
    pub action: Action,
    /// `spec.message`: lines for `.log` and an Event.
    pub messages: Vec<String>,
    /// `spec.notify.email`.
    pub email: Vec<String>,
    /// `spec.notify.slack`: a channel name, never a URL.
    pub slack: Vec<String>,
    /// `spec.labels`: put onto the resource.
    pub labels: BTreeMap<String, String>,
    /// `x-*` fields of the handler and of its spec, by their path under the handler: kept, never judged.
    pub extensions: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailureAction {
    /// The session fails.
    #[default]
    Raise,
    /// The phase stays Failed, ignored; what waits for it goes on.
    Continue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SuccessAction {
    #[default]
    Continue,
    /// A Warning event and a notification; order is not affected.
    Raise,
}

/// `x-timeouts` of one phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PhaseTimeouts {
    pub offer: Option<Duration>,
    pub start: Option<Duration>,
    pub attempt: Option<Duration>,
    pub heartbeat: Option<Duration>,
    pub total: Option<Duration>,
}

/// `x-backoff` of one phase.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PhaseBackoff {
    pub initial: Option<Duration>,
    /// 1 to 100.
    pub factor: Option<f64>,
    pub max: Option<Duration>,
    pub jitter: Option<Jitter>,
}

/// How a computed delay is spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Jitter {
    /// Uniform in 0 to the delay ("full jitter", Brooker 2015, "Exponential Backoff And Jitter").
    #[default]
    Full,
    None,
}

/// `x-onExhausted`: what happens when the attempts of a run are spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnExhausted {
    #[default]
    Fail,
    /// The phase is Held until a person decides.
    Hold,
}
