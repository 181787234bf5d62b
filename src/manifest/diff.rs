//! What an edit changes: phases, fields, waits, and what it would make run again.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{Phase, PhaseId, Plan};

/// From one plan to another. Everything in the document order of the newer plan, what was removed in that of the older.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diff {
    pub added: Vec<PhaseId>,
    pub removed: Vec<PhaseId>,
    pub changed: Vec<ChangedPhase>,
    pub edges_added: Vec<Edge>,
    pub edges_removed: Vec<Edge>,
    /// Phases of both plans whose finished result no longer counts: under `Merge` they run again.
    pub rerun: Vec<PhaseId>,
}

/// A phase of both plans that is not the same in both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedPhase {
    pub id: PhaseId,
    /// Canonical names of the fields of `spec` that differ, sorted: `retry`, `waitFor`, `x-exec`. Extensions of the phase
    /// itself are named `../x-...`.
    pub fields: Vec<String>,
}

/// A phase, and one that it waits for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge {
    pub phase: PhaseId,
    pub waits_for: PhaseId,
}

impl Diff {
    /// Whether the plans are equal but for the order of their phases.
    pub fn is_empty(&self) -> bool {
        self.changes_count() == 0
    }

    /// Phases added, removed and changed (`changesCount`).
    pub fn changes_count(&self) -> usize {
        self.added.len() + self.removed.len() + self.changed.len()
    }
}

/// Compares two plans; linear in both.
pub fn diff(old: &Plan, new: &Plan) -> Diff {
    let mut diff =
        Diff { edges_added: edges_only_in(new, old), edges_removed: edges_only_in(old, new), ..Diff::default() };
    for ix in new.indices() {
        let phase = new.phase(ix);
        let Some(before) = old.index_of(phase.id.as_str()) else {
            diff.added.push(phase.id.clone());
            continue;
        };
        if old.phase(before) != phase {
            let fields = changed_fields(old.phase(before), phase);
            if !fields.is_empty() {
                diff.changed.push(ChangedPhase { id: phase.id.clone(), fields });
            }
        }
        if old.phase_digest(before) != new.phase_digest(ix) {
            diff.rerun.push(phase.id.clone());
        }
    }
    let gone = old.phases().iter().filter(|phase| new.index_of(phase.id.as_str()).is_none());
    diff.removed = gone.map(|phase| phase.id.clone()).collect();
    diff
}

fn edges_only_in(plan: &Plan, other: &Plan) -> Vec<Edge> {
    let mut edges = Vec::new();
    for ix in plan.indices() {
        let id = plan.id(ix);
        let theirs: BTreeSet<&str> = match other.index_of(id.as_str()) {
            Some(there) => other.waits(there).iter().map(|wait| other.id(*wait).as_str()).collect(),
            None => BTreeSet::new(),
        };
        let ours = plan.waits(ix).iter().map(|wait| plan.id(*wait));
        let only = ours.filter(|wait| !theirs.contains(wait.as_str()));
        edges.extend(only.map(|wait| Edge { phase: id.clone(), waits_for: wait.clone() }));
    }
    edges
}

fn changed_fields(old: &Phase, new: &Phase) -> Vec<String> {
    let (old, new) = (fields(old), fields(new));
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    names.into_iter().filter(|name| old.get(*name) != new.get(*name)).cloned().collect()
}

/// The fields of the canonical spec, and the extensions of the phase itself.
fn fields(phase: &Phase) -> Map<String, Value> {
    let Value::Object(mut canonical) = phase.canonical() else { return Map::new() };
    let mut fields = match canonical.remove("spec") {
        Some(Value::Object(spec)) => spec,
        _ => Map::new(),
    };
    let own = canonical.into_iter().filter(|(key, _)| super::fields::is_extension(key));
    fields.extend(own.map(|(key, value)| (format!("../{key}"), value)));
    fields
}
