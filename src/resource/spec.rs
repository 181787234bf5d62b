//! The `PhaseManifest` resource as the API server stores it. Doc comments here are what `kubectl explain` prints.
//!
//! Read [`super::Orders`] instead of these fields: it is the same, checked and without the options. Everything is
//! optional and nothing is defaulted by the server, so that what is stored is what was written and a default can change.

#![allow(
    clippy::duplicated_attributes,
    reason = "every printer column has a type and a path, and clippy knows no columns"
)]

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    phase_schema::phases_schema,
    phases::Phases,
    status::PhaseManifestStatus,
    written::{Number, duration_schema, factor_schema},
};

/// What is to run, and how.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "pmp.dev",
    version = "v1alpha1",
    kind = "PhaseManifest",
    plural = "phasemanifests",
    namespaced,
    shortname = "pm",
    category = "pmp",
    status = "PhaseManifestStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A PhaseManifest runs a manifest of the Phase Manifest Protocol: phases that wait for each other, proposed to runtimes over NATS as soon as what they wait for is done.",
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.progress"),
    printcolumn(name = "Session", type_ = "string", json_path = ".status.sessionId", priority = 1),
    printcolumn(name = "Strategy", type_ = "string", json_path = ".status.strategy", priority = 1),
    printcolumn(name = "Revision", type_ = "integer", json_path = ".status.revision", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!(has(self.phases) && has(self.manifestFrom))",
        "message": "give the phases either in phases or by manifestFrom, not both",
        "reason": "FieldValueInvalid",
    },
    {
        "rule": "(has(self.sessionId) ? self.sessionId : '') == (has(oldSelf.sessionId) ? oldSelf.sessionId : '')",
        "message": "sessionId cannot be changed: runtimes know the session by it; make another resource",
        "reason": "FieldValueForbidden",
        "fieldPath": ".sessionId",
    },
]))]
pub struct PhaseManifestSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "phases_schema")]
    pub phases: Option<Phases>,

    /// Takes the phases from elsewhere instead of from phases. What is there is read when the resource changes and
    /// when what it names does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest_from: Option<ManifestFrom>,

    /// Who decides what runs next. Hybrid (the default): the operator proposes, runtimes accept or decline. Directed:
    /// the operator directs, and a decline spends an attempt. Runtime: runtimes decide, and their reports drive.
    /// A change makes a new revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,

    /// Pauses the session: nothing is offered and its clocks stand still. What runs goes on, and its reports count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,

    /// Ends the session early. Drain: what has started finishes, with its retries; nothing new starts. Cancel: what
    /// has started is told to stop and given timeouts.cancel. Empty is neither. Judged before suspend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown: Option<Shutdown>,

    /// Validates and shows what would change, and runs nothing of it: the last revision goes on until this is false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staged: Option<bool>,

    /// Plans only: nothing runs, and the verdict is Planned. A change makes a new revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,

    /// Runs the phase of this id and what it waits for, nothing else. Empty runs all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub target_phase: Option<String>,

    /// Most phases in flight at once. 0 (the default) is no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub parallelism: Option<i32>,

    /// What a failed phase whose onFailure raises does to the others. Stop (the default): nothing new starts.
    /// Isolate: phases that do not wait for it go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_policy: Option<FailurePolicy>,

    /// What an edit of the phases does to results. Merge (the default) keeps the result of every phase that has not
    /// changed and waits for nothing that has. Replace runs all again. Reject refuses edits while the session runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_policy: Option<UpdatePolicy>,

    /// The pause between the attempts of a phase, for phases without x-backoff.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,

    /// How long things may take, for phases without x-timeouts. An empty one is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,

    /// Names the session on the bus. Empty (the default) is namespace_name, with dots as underscores. Cannot be
    /// changed. On a connection that serves several namespaces it must begin with the namespace and an underscore.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128), regex(pattern = "^[A-Za-z0-9_-]*$"))]
    pub session_id: Option<String>,

    /// Which of the operator's configured NATS connections carries the session; default is default. Cannot take
    /// effect while the session runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = "^([a-z0-9]([a-z0-9-]*[a-z0-9])?)?$"))]
    pub connection: Option<String>,

    /// What is asked of single phases, each carried out once; status.requests has the results. Remove an entry once
    /// it is handled, its result goes with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["token"]))]
    pub requests: Option<Vec<Request>>,

    /// Deletes the resource this long after its verdict. Empty (the default) keeps it. 0 deletes it at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration_schema")]
    pub ttl_after_finished: Option<Number>,

    /// How many old revisions are kept as ControllerRevisions; default 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub revision_history_limit: Option<i32>,
}

/// Where a manifest is that is not in the resource itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManifestFrom {
    /// A ConfigMap in the resource's namespace.
    pub config_map: ConfigMapKey,
}

/// One key of a ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKey {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key that holds the manifest, as JSON or YAML.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Strategy {
    Hybrid,
    Directed,
    Runtime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Shutdown {
    #[serde(rename = "")]
    Off,
    Drain,
    Cancel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FailurePolicy {
    Stop,
    Isolate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum UpdatePolicy {
    #[default]
    Merge,
    Replace,
    Reject,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Jitter {
    Full,
    None,
}

/// Exponential backoff: initial, then factor times the last, never more than max.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Backoff {
    /// Before the second attempt; default 1s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration_schema")]
    pub initial: Option<Number>,
    /// From one pause to the next, 1 to 100; default 2. A fraction is written as text: "1.5".
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "factor_schema")]
    pub factor: Option<Number>,
    /// Longest pause; default 5m.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration_schema")]
    pub max: Option<Number>,
    /// Full (the default) draws every pause evenly between nothing and its computed length; None takes it as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Jitter>,
}

/// How long things may take: 300ms, 30s, 5m, 1h, or a number of seconds. Empty is off, but for offer and cancel, where
/// empty is the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Timeouts {
    /// How long an offer may stay unanswered before it is made again; default 5s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration_schema")]
    pub offer: Option<Number>,
    /// From taken to begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration_schema")]
    pub start: Option<Number>,
    /// How long one attempt may run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration_schema")]
    pub attempt: Option<Number>,
    /// Longest silence of a running attempt; overrides what its runtime announced.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration_schema")]
    pub heartbeat: Option<Number>,
    /// How long a cancelled attempt may take to stop; default 30s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration_schema")]
    pub cancel: Option<Number>,
    /// From the start of a revision to its verdict, less paused time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "duration_schema")]
    pub revision: Option<Number>,
}

/// One thing asked of a phase, or of the session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(self.action == 'Restart') != (has(self.phase) && self.phase != '')",
    "message": "Retry, Skip, Use and Complete name a phase; Restart names none",
    "reason": "FieldValueInvalid",
}]))]
pub struct Request {
    /// Made up by whoever asks, new for every request: a token that was carried out is never carried out again.
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]*$"))]
    pub token: String,
    /// Retry reopens a finished phase. Skip and Complete end it without running it. Use wants an onUse phase. Restart
    /// runs a finished manifest again.
    pub action: RequestAction,
    /// The id of the phase; absent for Restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub phase: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RequestAction {
    Retry,
    Skip,
    Use,
    Complete,
    Restart,
}
