//! The answer to POST /plan and POST /apply. The same for the same request, however often it is repeated; so it holds
//! nothing that another write changes.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::document::Submission;
use crate::{controller::answers, engine, manifest::Plan, resource::PhaseManifest};

/// What became of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The session is new.
    Created,
    /// The session's next revision.
    Updated,
    /// The session runs the plan again.
    Restarted,
    /// The session executes this plan already.
    Attached,
    /// Stored, for POST /apply to run.
    Staged,
    /// Stored and judged; nothing runs.
    Planned,
    /// What was staged runs.
    Applied,
    /// It stood there already.
    Unchanged,
    /// A command that stands in the spec.
    Accepted,
}

impl Outcome {
    /// The word of `status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Restarted => "restarted",
            Self::Attached => "attached",
            Self::Staged => "staged",
            Self::Planned => "planned",
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Accepted => "accepted",
        }
    }

    /// For people.
    pub fn message(self) -> &'static str {
        match self {
            Self::Created => "the plan is stored and will run",
            Self::Updated => "the plan is stored as the session's next revision",
            Self::Restarted => "the session runs the same plan again",
            Self::Attached => "the session executes this plan already",
            Self::Staged => "the plan is staged: nothing of it runs before POST /apply",
            Self::Planned => "the plan is valid; a dry run runs nothing",
            Self::Applied => "what was staged runs",
            Self::Unchanged => "there was nothing to do",
            Self::Accepted => "it stands in the resource, and the operator carries it out",
        }
    }
}

/// What is told beside the plan itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub outcome: Outcome,
    /// The number that the plan has or will have; none for what does not run. An edit that overtakes it takes it over.
    pub revision: Option<u64>,
    /// The revision that it is compared with; 0 is none.
    pub base: u64,
}

/// `{status, message, sessionId, namespace, name, revision, digest, phasesCount, changesCount, changes, waves, ignored}`.
///
/// `base` is the plan of that revision; changes are unknown where it is no longer kept.
pub fn answer(object: &PhaseManifest, session: &str, plan: &Plan, facts: &Facts, base: Option<&Plan>) -> Value {
    let mut changes = base.map_or(Value::Null, |base| answers::diff(object, base, plan));
    let mut count = None;
    if let Some(changes) = changes.as_object_mut() {
        count = changes.remove("changesCount");
        for name in ["sessionId", "revision", "digest", "specDigest"] {
            changes.remove(name);
        }
    }
    let names = |wave: &Vec<_>| wave.iter().map(|&ix| Value::from(plan.id(ix).as_str())).collect::<Vec<Value>>();
    let waves: Vec<Vec<Value>> = engine::waves(plan, None).iter().map(names).collect();
    json!({
        "status": facts.outcome.as_str(),
        "message": facts.outcome.message(),
        "sessionId": session,
        "namespace": object.metadata.namespace,
        "name": object.metadata.name,
        "revision": facts.revision,
        "digest": plan.digest().to_string(),
        "phasesCount": plan.len(),
        "changesCount": count,
        "changes": changes,
        "waves": waves,
    })
}

/// With what was left alone at the client's wish.
pub fn with_ignored(mut answer: Value, submission: &Submission) -> Value {
    if !submission.ignored.is_empty() {
        let ignored = submission.ignored.iter();
        let ignored = ignored.map(|one| json!({"pointer": one.pointer, "kind": one.kind, "name": one.name}));
        answer["ignored"] = ignored.collect();
    }
    answer
}
