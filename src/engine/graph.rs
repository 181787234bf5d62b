//! What the plan's graph says about running it: which phases are wanted, what hangs on each, waves, the longest way.
//!
//! Everything here is linear in phases plus waits and recurses nowhere.

use crate::manifest::{InstanceMode, PhaseId, PhaseIx, Plan};

/// The phases to run: what `target` and everything in `used` wait for, in full; without a target, all immediate ones.
pub(super) fn wanted(plan: &Plan, target: Option<&PhaseId>, used: impl Iterator<Item = PhaseIx>) -> Vec<bool> {
    let target = target.and_then(|id| plan.index_of(id.as_str()));
    let mut open: Vec<PhaseIx> = match target {
        Some(ix) => vec![ix],
        None => plan.indices().filter(|&ix| plan.phase(ix).spec.instance_mode == InstanceMode::Immediate).collect(),
    };
    open.extend(used);
    let mut wanted = vec![false; plan.len()];
    while let Some(ix) = open.pop() {
        if !std::mem::replace(&mut wanted[ix.index()], true) {
            open.extend(plan.waits(ix));
        }
    }
    wanted
}

/// For each phase, the number of phases on the longest chain that hangs on it: what is urgent among equals.
pub(super) fn depths(plan: &Plan) -> Vec<u32> {
    let mut depths = vec![0; plan.len()];
    for &ix in plan.topological_order().iter().rev() {
        depths[ix.index()] = plan.dependents(ix).iter().map(|on| depths[on.index()] + 1).max().unwrap_or(0);
    }
    depths
}

/// What can run side by side: the n-th wave waits for the one before it. Only wanted phases; document order within.
pub fn waves(plan: &Plan, target: Option<&PhaseId>) -> Vec<Vec<PhaseIx>> {
    let wanted = wanted(plan, target, std::iter::empty());
    let mut level = vec![0_usize; plan.len()];
    let mut waves: Vec<Vec<PhaseIx>> = Vec::new();
    for &ix in plan.topological_order().iter().filter(|ix| wanted[ix.index()]) {
        let at = plan.waits(ix).iter().map(|on| level[on.index()] + 1).max().unwrap_or(0);
        level[ix.index()] = at;
        if waves.len() == at {
            waves.push(Vec::new());
        }
        waves[at].push(ix);
    }
    for wave in &mut waves {
        wave.sort_unstable();
    }
    waves
}

/// The longest chain of wanted phases, first to last; the first in document order among equals.
pub fn critical_path(plan: &Plan, target: Option<&PhaseId>) -> Vec<PhaseIx> {
    let wanted = wanted(plan, target, std::iter::empty());
    let mut length = vec![0_u32; plan.len()];
    for &ix in plan.topological_order().iter().rev().filter(|ix| wanted[ix.index()]) {
        let next = plan.dependents(ix).iter().filter(|on| wanted[on.index()]).map(|on| length[on.index()]).max();
        length[ix.index()] = next.unwrap_or(0) + 1;
    }
    let longest = |candidates: &mut dyn Iterator<Item = PhaseIx>| {
        candidates.filter(|ix| wanted[ix.index()]).max_by_key(|ix| (length[ix.index()], std::cmp::Reverse(*ix)))
    };
    let mut path = Vec::new();
    let mut at = longest(&mut plan.indices().filter(|&ix| plan.waits(ix).is_empty()));
    while let Some(ix) = at {
        path.push(ix);
        at = longest(&mut plan.dependents(ix).iter().copied());
    }
    path
}
