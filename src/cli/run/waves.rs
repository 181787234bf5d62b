//! What a dry run shows: which phases would run, in which waves, and the longest chain among them.
//!
//! Pure. Durations are unknown before a run, so the critical path counts phases.

use serde_json::{Value, json};

use super::paint::Paint;
use crate::manifest::{InstanceMode, PhaseIx, Plan};

/// The shape of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Each wave waits only for earlier ones; document order within.
    pub waves: Vec<Vec<PhaseIx>>,
    /// The longest chain of waits, first to last; among equals, the earliest in document order.
    pub critical_path: Vec<PhaseIx>,
    /// `onUse` phases, and with a target everything else, that nobody wants.
    pub idle: Vec<PhaseIx>,
}

impl Shape {
    /// Of the phases wanted: the target and what it waits for, or every immediate phase and what it waits for.
    pub fn of(plan: &Plan, target: Option<PhaseIx>) -> Self {
        let wanted = wanted(plan, target);
        let mut depth = vec![0_usize; plan.len()];
        let mut waves: Vec<Vec<PhaseIx>> = Vec::new();
        for &ix in plan.topological_order().iter().filter(|ix| wanted[ix.index()]) {
            let own = plan.waits(ix).iter().map(|on| depth[on.index()] + 1).max().unwrap_or(0);
            depth[ix.index()] = own;
            if waves.len() <= own {
                waves.resize(own + 1, Vec::new());
            }
            waves[own].push(ix);
        }
        for wave in &mut waves {
            wave.sort_unstable();
        }
        let critical_path = critical_path(plan, &waves, &depth);
        let idle = plan.indices().filter(|ix| !wanted[ix.index()]).collect();
        Self { waves, critical_path, idle }
    }
}

/// By index: whether the phase is wanted.
fn wanted(plan: &Plan, target: Option<PhaseIx>) -> Vec<bool> {
    let mut wanted = vec![false; plan.len()];
    let mut open: Vec<PhaseIx> = match target {
        Some(ix) => vec![ix],
        None => plan.indices().filter(|&ix| plan.phase(ix).spec.instance_mode == InstanceMode::Immediate).collect(),
    };
    while let Some(ix) = open.pop() {
        if !std::mem::replace(&mut wanted[ix.index()], true) {
            open.extend_from_slice(plan.waits(ix));
        }
    }
    wanted
}

/// Back from the deepest phase, each time to the earliest dependency that is one less deep.
fn critical_path(plan: &Plan, waves: &[Vec<PhaseIx>], depth: &[usize]) -> Vec<PhaseIx> {
    let mut path = Vec::with_capacity(waves.len());
    let mut at = waves.last().and_then(|wave| wave.first().copied());
    while let Some(ix) = at {
        path.push(ix);
        at = plan.waits(ix).iter().copied().filter(|on| depth[on.index()] + 1 == depth[ix.index()]).min();
    }
    path.reverse();
    path
}

/// As a person reads it.
pub fn text(plan: &Plan, shape: &Shape, paint: Paint) -> String {
    let names = |list: &[PhaseIx], between: &str| {
        list.iter().map(|&ix| plan.id(ix).as_str()).collect::<Vec<_>>().join(between)
    };
    let mut out = String::new();
    let width = shape.waves.len().to_string().len();
    for (i, wave) in shape.waves.iter().enumerate() {
        let head = format!("wave {:>width$}", i + 1);
        out.push_str(&format!("{}  {}\n", paint.strong(&head), names(wave, ", ")));
    }
    if !shape.critical_path.is_empty() {
        let count = shape.critical_path.len();
        let phases = if count == 1 { "phase" } else { "phases" };
        let head = paint.strong(&format!("critical path, {count} {phases}:"));
        out.push_str(&format!("{head} {}\n", names(&shape.critical_path, " -> ")));
    }
    if !shape.idle.is_empty() {
        out.push_str(&paint.faint(&format!("not wanted: {}\n", names(&shape.idle, ", "))));
    }
    if plan.is_empty() {
        out.push_str("an empty manifest: nothing to run, succeeds at once\n");
    }
    out
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
    use crate::cli::run::samples::{on_use, phase, plan};

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
        let shape = Shape::of(&plan, plan.index_of("c"));
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
