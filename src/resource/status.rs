//! The status as it is stored. Written by one process only, as a whole; read by whoever likes.
//!
//! Every field may be absent, and every word is text: an object written by an older or newer operator, or by hand,
//! must never fail to be read, because one such object would stop the watch over all of them. [`super::restore`] checks.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::written::{Moment, Span};
use crate::engine::Counts;

/// The version of the status that this operator writes.
pub const STATUS_SCHEMA: i64 = 1;

/// What is known of the session.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct PhaseManifestStatus {
    /// Version of this status; 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<i64>,

    /// The generation of the resource that this status is about; -1 before the operator has seen it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Names the session on the bus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,

    /// Counts the manifests that this session has had, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,

    /// Of the revision's manifest in canonical form: equal for every spelling of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,

    /// The strategy of the revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<String>,

    /// Where the session is, in one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,

    /// The same for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,

    /// How the session ended: Succeeded, Failed, Cancelled or Planned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,

    /// Which process runs the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,

    /// How many phases are where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<PhaseCounts>,

    /// Done of wanted. Done is Complete, Skipped, and Failed where ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,

    /// spec.targetPhase as it was last acted on, which a refused or staged edit does not change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_phase: Option<String>,

    /// When the revision started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Moment>,

    /// When the verdict fell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Moment>,

    /// Since when the session is suspended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_since: Option<Moment>,

    /// How long the revision was suspended before that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_total: Option<Span>,

    /// Whether some runtime answers offers: Unknown, Available or Unavailable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub availability: Option<String>,

    /// Some runtime was heard in this revision.
    #[serde(skip_serializing_if = "is_false")]
    pub heard: bool,

    /// The revision's clock, timeouts.revision, ran out.
    #[serde(skip_serializing_if = "is_false")]
    pub timed_out: bool,

    /// The highest run of any phase that an edit removed; absent is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs_removed: Option<i64>,

    /// The last report folded into this status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bus: Option<BusPosition>,

    /// The run of every phase whose row does not say otherwise; absent is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<i64>,

    /// A row for each phase of which there is something to say. One without a row, and without a letter in outcomes,
    /// is as the revision started it: Waiting, or Idle if its instanceMode is onUse.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<PhaseStatus>,

    /// One letter a phase, in the manifest's order, in place of the rows of finished phases, once rows take too much
    /// room: C complete, c complete by request, S skipped, s skipped by request, X cancelled by shutdown, D drained,
    /// T stopped by a failure elsewhere, R by timeouts.revision, Q by request, Z superseded, x cancelled otherwise, U or
    /// u upstream failed; a dot has a row or nothing to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcomes: Option<String>,

    /// What became of spec.requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<RequestStatus>,

    /// Notifications on their way.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outbox: Vec<OutboxEntry>,

    /// Accepted, Ready, Reconciling, Stalled, Succeeded, Completed, RuntimeAvailable and BusReady.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// The process that runs a session. A write that finds another holder than its own is not made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Holder {
    /// Names the process; new at every start.
    pub process: String,
    /// leaseTransitions of the leader's Lease when the session was taken: a later leader's is higher.
    pub transitions: i64,
    /// When it last wrote because another process asked on the bus whether it still lives.
    pub answered: Option<Moment>,
}

impl Holder {
    /// The same process, whenever it wrote.
    pub fn is(&self, other: &Self) -> bool {
        self.process == other.process && self.transitions == other.transitions
    }
}

/// The position up to which the bus was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BusPosition {
    pub stream: String,
    /// When the stream was created: another time is another stream, and the position means nothing in it.
    pub created: Option<Moment>,
    pub sequence: i64,
}

/// How many phases are where. Zeros are written: a patch could not take back what it does not name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PhaseCounts {
    /// In the manifest.
    pub total: i64,
    /// That this session is to run; the rest is idle.
    pub wanted: i64,
    pub idle: i64,
    pub waiting: i64,
    pub offered: i64,
    pub queued: i64,
    pub running: i64,
    pub backing_off: i64,
    pub held: i64,
    pub cancelling: i64,
    pub complete: i64,
    /// Without the ignored ones.
    pub failed: i64,
    pub ignored: i64,
    pub upstream_failed: i64,
    pub skipped: i64,
    pub cancelled: i64,
}

impl From<Counts> for PhaseCounts {
    fn from(counts: Counts) -> Self {
        Self {
            total: counts.total.into(),
            wanted: counts.wanted.into(),
            idle: counts.idle.into(),
            waiting: counts.waiting.into(),
            offered: counts.offered.into(),
            queued: counts.queued.into(),
            running: counts.running.into(),
            backing_off: counts.backing_off.into(),
            held: counts.held.into(),
            cancelling: counts.cancelling.into(),
            complete: counts.complete.into(),
            failed: counts.failed.into(),
            ignored: counts.ignored.into(),
            upstream_failed: counts.upstream_failed.into(),
            skipped: counts.skipped.into(),
            cancelled: counts.cancelled.into(),
        }
    }
}

/// What is known of one phase. What is absent is zero, none, or the same as for the session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[expect(clippy::struct_excessive_bools, reason = "the stored form of the engine's row, field for field")]
pub struct PhaseStatus {
    pub id: String,
    /// Waiting, Idle, Offered, Queued, Running, BackingOff, Held, Cancelling, Complete, Failed, UpstreamFailed, Skipped
    /// or Cancelled.
    pub state: String,
    /// Raised whenever the phase is reopened; absent is the status's own run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<i64>,
    /// Tries in this run, the open one included.
    #[serde(skip_serializing_if = "is_zero")]
    pub attempt: i64,
    /// How often the open attempt was offered.
    #[serde(skip_serializing_if = "is_zero")]
    pub offers: i64,
    /// Why the phase is in its state, in one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Root causes of UpstreamFailed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocked_by: Vec<String>,
    /// Who holds the open attempt, or finished the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// As the runtime wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Since when the phase is in its state; absent is the status's startedAt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Moment>,
    /// When the state's own clock runs out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due: Option<Moment>,
    /// When this run's first attempt was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Moment>,
    /// When this run ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Moment>,
    /// Phases of other manifests that were seen done.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub released: Vec<Release>,
    /// Failed, and what waits for it goes on.
    #[serde(skip_serializing_if = "is_false")]
    pub ignored: bool,
    /// Asked for by Use.
    #[serde(skip_serializing_if = "is_false")]
    pub used: bool,
    /// An edit changed it while it ran: it ends unjudged, then runs again.
    #[serde(skip_serializing_if = "is_false")]
    pub superseded: bool,
    /// Taken by a runtime that knows no attempts: never offered again.
    #[serde(skip_serializing_if = "is_false")]
    pub tokenless: bool,
    /// How often the runtime that holds the attempt says that it is alive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Span>,
}

/// A phase of another manifest that was waited for and is done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Release {
    pub manifest: String,
    pub phase: String,
}

/// What became of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestStatus {
    pub token: String,
    /// Done or Refused.
    pub result: String,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// One notification on its way to one receiver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboxEntry {
    /// The same after any crash, so that nothing is sent for two reasons.
    pub id: String,
    pub phase: String,
    pub kind: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub tries: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_at: Option<Moment>,
    #[serde(skip_serializing_if = "is_false")]
    pub done: bool,
}

/// Every top-level field of the status; a test holds it against the type.
const STATUS_FIELDS: [&str; 28] = [
    "schema",
    "observedGeneration",
    "sessionId",
    "revision",
    "digest",
    "strategy",
    "state",
    "message",
    "verdict",
    "holder",
    "counts",
    "progress",
    "targetPhase",
    "startedAt",
    "finishedAt",
    "pausedSince",
    "pausedTotal",
    "availability",
    "heard",
    "timedOut",
    "runsRemoved",
    "bus",
    "run",
    "phases",
    "outcomes",
    "requests",
    "outbox",
    "conditions",
];

/// The body of a JSON merge patch (RFC 7386) after which the stored status is exactly this one.
///
/// Every top-level field is in it, null where empty, because a merge patch takes back nothing that it does not name.
/// The caller adds `metadata.resourceVersion`.
pub fn status_patch(status: &PhaseManifestStatus) -> Value {
    let mut fields: Map<String, Value> = STATUS_FIELDS.iter().map(|&name| (name.to_owned(), Value::Null)).collect();
    match serde_json::to_value(status) {
        Ok(Value::Object(set)) => fields.extend(set),
        other => unreachable!("a status of texts, numbers and lists is a JSON object, not {other:?}"),
    }
    json!({"status": fields})
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}
