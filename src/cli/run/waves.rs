//! What a dry run shows: which phases would run, in which waves, and the longest chain among them.
//!
//! Pure. Durations are unknown before a run, so the critical path counts phases.

use serde_json::{Value, json};

use super::paint::Paint;
use crate::{
    engine,
    manifest::{Phase, PhaseId, PhaseIx, Plan},
};

/// The shape of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Each wave waits only for earlier ones; document order within.
    pub waves: Vec<Vec<PhaseIx>>,
    /// The longest chain of waits, first to last; among equals, the earliest in document order.
    pub critical_path: Vec<PhaseIx>,
    /// What nobody wants: `onUse` phases, and with a target everything that it does not wait for.
    pub idle: Vec<PhaseIx>,
}

impl Shape {
    /// Of the phases wanted: the target and what it waits for, or every immediate phase and what it waits for.
    pub fn of(plan: &Plan, target: Option<&PhaseId>) -> Self {
        let waves = engine::waves(plan, target);
        let mut is_wanted = vec![false; plan.len()];
        for ix in waves.iter().flatten() {
            is_wanted[ix.index()] = true;
        }
        let idle = plan.indices().filter(|ix| !is_wanted[ix.index()]).collect();
        Self { waves, critical_path: engine::critical_path(plan, target), idle }
    }

    /// Every phase that would run.
    pub fn wanted<'a>(&'a self, plan: &'a Plan) -> impl Iterator<Item = &'a Phase> {
        self.waves.iter().flatten().map(|&ix| plan.phase(ix))
    }
}

/// As a person reads it.
pub fn text(plan: &Plan, shape: &Shape, paint: Paint) -> String {
    let names =
        |list: &[PhaseIx], between: &str| list.iter().map(|&ix| plan.id(ix).as_str()).collect::<Vec<_>>().join(between);
    let mut out = Vec::new();
    let width = shape.waves.len().to_string().len();
    for (i, wave) in shape.waves.iter().enumerate() {
        let head = format!("wave {:>width$}", i + 1);
        out.push(format!("{}  {}", paint.strong(&head), names(wave, ", ")));
    }
    if !shape.critical_path.is_empty() {
        let count = shape.critical_path.len();
        let phases = if count == 1 { "phase" } else { "phases" };
        let head = paint.strong(&format!("critical path, {count} {phases}:"));
        out.push(format!("{head} {}", names(&shape.critical_path, " -> ")));
    }
    if !shape.idle.is_empty() {
        out.push(paint.faint(&format!("not wanted: {}", names(&shape.idle, ", "))));
    }
    if plan.is_empty() {
        out.push("an empty manifest: nothing to run, succeeds at once".to_owned());
    }
    out.join("\n") + "\n"
}

/// `{verdict: "Planned", exitCode: 0, digest, waves: [[id]], criticalPath: [id], idle: [id]}`.
pub fn document(plan: &Plan, shape: &Shape) -> Value {
    let names = |list: &[PhaseIx]| list.iter().map(|&ix| plan.id(ix).as_str()).collect::<Vec<_>>();
    json!({
        "verdict": "Planned",
        "exitCode": 0,
        "digest": plan.digest().to_string(),
        "waves": shape.waves.iter().map(|wave| names(wave)).collect::<Vec<_>>(),
        "criticalPath": names(&shape.critical_path),
        "idle": names(&shape.idle),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::run::samples::{id, on_use, phase, plan};

    #[test]
    fn waves_follow_the_waits_and_the_longest_chain_is_named() {
        let plan = plan(vec![
            phase("late", &["left", "right"]),
            phase("root", &[]),
            phase("left", &["root"]),
            phase("right", &["middle"]),
            phase("middle", &["root"]),
            on_use("spare", &["root"]),
        ]);
        let shape = Shape::of(&plan, None);
        assert_eq!(
            text(&plan, &shape, Paint::Plain),
            "wave 1  root\nwave 2  left, middle\nwave 3  right\nwave 4  late\n\
             critical path, 4 phases: root -> middle -> right -> late\nnot wanted: spare\n"
        );
    }

    #[test]
    fn a_target_wants_only_what_it_waits_for_even_if_on_use() {
        let plan = plan(vec![phase("a", &[]), phase("b", &["a"]), on_use("c", &["a"]), phase("d", &[])]);
        let shape = Shape::of(&plan, Some(&id("c")));
        assert_eq!(document(&plan, &shape)["waves"], serde_json::json!([["a"], ["c"]]));
        assert_eq!(document(&plan, &shape)["idle"], serde_json::json!(["b", "d"]));
    }

    #[test]
    fn equal_chains_are_decided_by_document_order() {
        let plan = plan(vec![phase("z", &[]), phase("a", &[]), phase("end", &["a", "z"])]);
        let shape = Shape::of(&plan, None);
        assert_eq!(document(&plan, &shape)["criticalPath"], serde_json::json!(["z", "end"]));
    }

    #[test]
    fn an_empty_manifest_says_so() {
        let plan = plan(vec![]);
        assert!(text(&plan, &Shape::of(&plan, None), Paint::Plain).contains("succeeds at once"));
    }
}
