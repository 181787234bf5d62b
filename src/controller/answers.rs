//! What is answered to `get_state` and `diff` on the bus, and to GET /status and /diff over HTTP. PURE.
//!
//! Made from the stored status alone, so that any replica answers alike, also for sessions that have ended.

use serde_json::{Map, Value, json};

use crate::{
    engine::{PhaseRecord, Record},
    manifest::{self, Plan},
    resource::{PhaseManifest, PhaseManifestStatus, restore},
};

/// The whole session: `{sessionId, state, message, verdict, revision, digest, strategy, counts, progress, startedAt,
/// finishedAt, phases: [{id, state, run, attempt, ..}]}`; what is not known is absent.
///
/// With the revision's plan every phase is in it, in the manifest's order. Without, or where the status is not of that
/// plan, only the rows that are stored: those of which there is something to say.
pub fn state(object: &PhaseManifest, plan: Option<&Plan>) -> Value {
    let empty = PhaseManifestStatus::default();
    let status = object.status.as_ref().unwrap_or(&empty);
    let record = plan.and_then(|plan| restore(status, plan).ok());
    let stored = serde_json::to_value(status).unwrap_or_default();
    let fields = ["sessionId", "state", "message", "verdict", "revision", "digest", "strategy", "counts", "progress"];
    let times = ["startedAt", "finishedAt", "pausedSince", "observedGeneration", "requests"];
    let mut answer: Map<String, Value> =
        fields.iter().chain(&times).filter_map(|&name| Some((name.to_owned(), stored.get(name)?.clone()))).collect();
    let rows = match &record {
        Some(record) => rows(record),
        None => stored.get("phases").cloned().unwrap_or_else(|| json!([])),
    };
    answer.insert("phases".to_owned(), rows);
    Value::Object(answer)
}

/// An answer of at most so many bytes: where it is longer, first the phases that are done or untouched are left out,
/// then all; `phasesOmitted` says how many.
pub fn within(mut answer: Value, bytes_max: usize) -> Vec<u8> {
    const QUIET: [&str; 4] = ["Complete", "Skipped", "Waiting", "Idle"];
    let is_telling = |row: &Value| row["state"].as_str().is_none_or(|state| !QUIET.contains(&state));
    let whole = answer.to_string().into_bytes();
    if whole.len() <= bytes_max {
        return whole;
    }
    let cut = without_phases(&mut answer, is_telling);
    if cut.len() <= bytes_max { cut } else { without_phases(&mut answer, |_| false) }
}

fn without_phases(answer: &mut Value, keep: impl Fn(&Value) -> bool) -> Vec<u8> {
    let mut omitted = answer["phasesOmitted"].as_u64().unwrap_or(0);
    if let Some(Value::Array(rows)) = answer.get_mut("phases") {
        let before = rows.len();
        rows.retain(keep);
        omitted += u64::try_from(before - rows.len()).unwrap_or(u64::MAX);
    }
    answer["phasesOmitted"] = omitted.into();
    answer.to_string().into_bytes()
}

/// From the last revision to the plan that the spec holds now: `{sessionId, revision, digest, specDigest, changesCount,
/// added, removed, changed: [{id, fields}], edgesAdded: [{phase, waitsFor}], edgesRemoved, rerun}`.
pub fn diff(object: &PhaseManifest, last: &Plan, spec: &Plan) -> Value {
    let status = object.status.as_ref();
    let diff = manifest::diff(last, spec);
    let ids = |ids: &[manifest::PhaseId]| ids.iter().map(|id| id.as_str().into()).collect::<Vec<Value>>();
    let edges = |edges: &[manifest::Edge]| {
        let edge = |edge: &manifest::Edge| json!({"phase": edge.phase.as_str(), "waitsFor": edge.waits_for.as_str()});
        edges.iter().map(edge).collect::<Vec<Value>>()
    };
    let changed = |phase: &manifest::ChangedPhase| json!({"id": phase.id.as_str(), "fields": phase.fields});
    json!({
        "sessionId": status.and_then(|status| status.session_id.clone()),
        "revision": status.and_then(|status| status.revision),
        "digest": last.digest().to_string(),
        "specDigest": spec.digest().to_string(),
        "changesCount": diff.changes_count(),
        "added": ids(&diff.added),
        "removed": ids(&diff.removed),
        "changed": diff.changed.iter().map(changed).collect::<Vec<Value>>(),
        "edgesAdded": edges(&diff.edges_added),
        "edgesRemoved": edges(&diff.edges_removed),
        "rerun": ids(&diff.rerun),
    })
}

fn rows(record: &Record) -> Value {
    record.phases.iter().map(row).collect()
}

/// In the words of the stored rows, with nothing left out that a stored row would take from elsewhere.
fn row(phase: &PhaseRecord) -> Value {
    let mut row = Map::new();
    let mut put = |name: &str, value: Value| {
        let is_empty = match &value {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            _ => false,
        };
        if !is_empty {
            row.insert(name.to_owned(), value);
        }
    };
    let time = |at: jiff::Timestamp| Value::from(format!("{at:.3}"));
    put("id", phase.id.as_str().into());
    put("state", phase.state.as_str().into());
    put("run", phase.run.into());
    put("attempt", phase.attempt.into());
    put("reason", phase.reason.map_or(Value::Null, |reason| reason.as_str().into()));
    put("message", phase.message.as_str().into());
    put("blockedBy", phase.blocked_by.iter().map(|id| Value::from(id.as_str())).collect());
    put("runtime", phase.runtime.as_deref().into());
    put("progress", phase.progress.as_deref().into());
    put("since", time(phase.since));
    put("due", phase.due.map_or(Value::Null, time));
    put("startedAt", phase.started_at.map_or(Value::Null, time));
    put("finishedAt", phase.finished_at.map_or(Value::Null, time));
    put("ignored", phase.ignored.into());
    Value::Object(row)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;

    use super::*;
    use crate::{
        engine::{Session, Settings, Strategy},
        manifest::{OtherKinds, from_values},
        resource::{Frame, PhaseManifestSpec, STATUS_BYTES_MAX, project},
    };

    fn plan(phases: &[Value]) -> Arc<Plan> {
        Arc::new(from_values(phases, OtherKinds::Refuse).unwrap().0)
    }

    fn object(plan: &Arc<Plan>) -> PhaseManifest {
        let now = Timestamp::from_second(1).unwrap();
        let session = Session::start("uid", Arc::clone(plan), 3, Strategy::Hybrid, Settings::default(), now);
        let frame = Frame {
            session_id: "ns_boot".to_owned(),
            digest: plan.digest().to_string(),
            state: "Running".to_owned(),
            counts: session.counts(),
            ..Frame::default()
        };
        let mut object = PhaseManifest::new("boot", PhaseManifestSpec::default());
        object.status = Some(project(&session.record(), plan, frame, STATUS_BYTES_MAX).unwrap());
        object
    }

    fn chain(length: usize) -> Vec<Value> {
        (0..length)
            .map(|n| {
                let waits = if n == 0 { json!([]) } else { json!([format!("p{}", n - 1)]) };
                json!({"kind": "Phase", "id": format!("p{n}"), "spec": {"waitFor": waits}})
            })
            .collect()
    }

    #[test]
    fn state_names_every_phase_of_the_plan_also_those_without_a_row() {
        let plan = plan(&chain(3));
        let object = object(&plan);
        assert!(object.status.as_ref().unwrap().phases.is_empty(), "nothing has happened to any of them");
        let answer = state(&object, Some(&plan));
        assert_eq!(answer["sessionId"], "ns_boot");
        assert_eq!(answer["state"], "Running");
        assert_eq!(answer["revision"], 3);
        assert_eq!(answer["digest"], plan.digest().to_string());
        assert_eq!(answer["counts"]["waiting"], 3);
        assert_eq!(answer["progress"], "0/3");
        let phases = answer["phases"].as_array().unwrap();
        let ids: Vec<&str> = phases.iter().filter_map(|phase| phase["id"].as_str()).collect();
        assert_eq!(ids, ["p0", "p1", "p2"]);
        assert_eq!(phases[2]["state"], "Waiting");
        assert_eq!(phases[2]["run"], 1);
    }

    #[test]
    fn a_resource_that_nobody_has_looked_at_has_a_state_without_words() {
        let object = PhaseManifest::new("boot", PhaseManifestSpec::default());
        assert_eq!(state(&object, None), json!({"phases": []}));
        assert_eq!(state(&object, Some(&plan(&chain(1))))["phases"], json!([]));
    }

    #[test]
    fn an_answer_that_is_too_long_tells_of_what_is_under_way() {
        let mut phases: Vec<Value> = (0..500).map(|n| json!({"id": format!("p{n}"), "state": "Complete"})).collect();
        phases.push(json!({"id": "open", "state": "Running"}));
        let whole = json!({"sessionId": "s", "phases": phases});
        let cut: Value = serde_json::from_slice(&within(whole.clone(), 2000)).unwrap();
        assert_eq!(cut["phases"], json!([{"id": "open", "state": "Running"}]));
        assert_eq!(cut["phasesOmitted"], 500);
        let bare: Value = serde_json::from_slice(&within(whole.clone(), 60)).unwrap();
        assert_eq!(bare, json!({"sessionId": "s", "phases": [], "phasesOmitted": 501}));
        assert_eq!(within(whole.clone(), 1 << 20), whole.to_string().into_bytes());
    }

    #[test]
    fn diff_tells_what_an_edit_adds_removes_changes_and_reruns() {
        let old = plan(&chain(3));
        let mut edited = chain(2);
        edited[1]["spec"]["x-exec"] = json!({"command": ["true"]});
        edited.push(json!({"kind": "Phase", "id": "new", "spec": {"waitFor": ["p1"]}}));
        let answer = diff(&object(&old), &old, &plan(&edited));
        assert_eq!(answer["sessionId"], "ns_boot");
        assert_eq!(answer["added"], json!(["new"]));
        assert_eq!(answer["removed"], json!(["p2"]));
        assert_eq!(answer["changed"], json!([{"id": "p1", "fields": ["x-exec"]}]));
        assert_eq!(answer["edgesAdded"], json!([{"phase": "new", "waitsFor": "p1"}]));
        assert_eq!(answer["edgesRemoved"], json!([{"phase": "p2", "waitsFor": "p1"}]));
        assert_eq!(answer["rerun"], json!(["p1"]));
        assert_eq!(answer["changesCount"], 3);
        assert_ne!(answer["digest"], answer["specDigest"]);
    }
}
