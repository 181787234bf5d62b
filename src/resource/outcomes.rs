//! The letters of `status.outcomes`: what is left of a finished phase whose row was given up for room.
//!
//! A letter stands for a state and its reason, both exactly. Failed phases have none: their rows stay, because people
//! read them and Retry asks about them.

use jiff::Timestamp;

use crate::{
    engine::{BLOCKED_BY_MAX, PhaseReason, PhaseRecord, PhaseState},
    manifest::{PhaseId, PhaseIx, Plan},
};

/// Has a row, or is as the revision started it.
pub(super) const NOTHING: char = '.';

/// Each pair once, each letter once. Part of the stored format: entries are added, never changed.
const LETTERS: [(char, PhaseState, Option<PhaseReason>); 13] = [
    ('C', PhaseState::Complete, None),
    ('c', PhaseState::Complete, Some(PhaseReason::Requested)),
    ('S', PhaseState::Skipped, None),
    ('s', PhaseState::Skipped, Some(PhaseReason::Requested)),
    ('U', PhaseState::UpstreamFailed, Some(PhaseReason::DependencyFailed)),
    ('u', PhaseState::UpstreamFailed, None),
    ('T', PhaseState::Cancelled, Some(PhaseReason::Stopped)),
    ('X', PhaseState::Cancelled, Some(PhaseReason::Shutdown)),
    ('D', PhaseState::Cancelled, Some(PhaseReason::Drained)),
    ('Z', PhaseState::Cancelled, Some(PhaseReason::Superseded)),
    ('R', PhaseState::Cancelled, Some(PhaseReason::RevisionTimeout)),
    ('Q', PhaseState::Cancelled, Some(PhaseReason::Requested)),
    ('x', PhaseState::Cancelled, None),
];

/// The letter for a row; absent where the row says more than a letter may lose.
///
/// Lost are the attempts of what was done, message, runtime, progress, heartbeat and times. Kept, by keeping the row, is
/// whatever a later edit, request or verdict asks about: another run than the others', a Use, satisfied waits on other
/// manifests, the marks of older peers and edits, and that something left undone was ever offered, because its token
/// must not be spoken again.
pub(super) fn letter(row: &PhaseRecord, run: u32) -> Option<char> {
    let is_done = matches!(row.state, PhaseState::Complete | PhaseState::Skipped);
    let is_plain = row.run == run
        && (is_done || (row.attempt == 0 && row.offers == 0))
        && row.released.is_empty()
        && !(row.ignored || row.used || row.superseded || row.tokenless);
    let known = LETTERS.iter().find(|&&(_, state, reason)| state == row.state && reason == row.reason);
    known.filter(|_| is_plain).map(|&(letter, ..)| letter)
}

/// Works out `blockedBy` of the UpstreamFailed phases that came back from letters, as the engine does: what it waits
/// for and failed, or what kept that from starting.
pub(super) fn trace_causes(plan: &Plan, phases: &mut [PhaseRecord], was_letter: impl Fn(PhaseIx) -> bool) {
    for &ix in plan.topological_order() {
        if phases[ix.index()].state == PhaseState::UpstreamFailed && was_letter(ix) {
            phases[ix.index()].blocked_by = causes(plan, phases, ix);
        }
    }
}

fn causes(plan: &Plan, phases: &[PhaseRecord], ix: PhaseIx) -> Vec<PhaseId> {
    let mut causes = Vec::new();
    for &on in plan.waits(ix) {
        let row = &phases[on.index()];
        match row.state {
            PhaseState::UpstreamFailed => {
                causes.extend(row.blocked_by.iter().filter_map(|id| plan.index_of(id.as_str())));
            }
            PhaseState::Cancelled => causes.push(on),
            PhaseState::Failed if !row.ignored => causes.push(on),
            _ => {}
        }
    }
    causes.sort_unstable();
    causes.dedup();
    causes.truncate(BLOCKED_BY_MAX);
    causes.into_iter().map(|ix| plan.id(ix).clone()).collect()
}

/// The row that a letter is read back as; absent for a letter that nobody wrote.
pub(super) fn row(letter: char, id: &PhaseId, run: u32, started_at: Timestamp) -> Option<PhaseRecord> {
    let &(_, state, reason) = LETTERS.iter().find(|&&(known, ..)| known == letter)?;
    Some(PhaseRecord { reason, ..fresh(id, state, run, started_at) })
}

/// A row of which nothing is remembered but where it is.
pub(super) fn fresh(id: &PhaseId, state: PhaseState, run: u32, started_at: Timestamp) -> PhaseRecord {
    PhaseRecord { state, ..PhaseRecord::fresh(id, run, started_at) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_letter_means_one_thing_and_every_thing_has_one_letter() {
        let letters: HashSet<char> = LETTERS.iter().map(|&(letter, ..)| letter).collect();
        let meanings: HashSet<_> = LETTERS.iter().map(|&(_, state, reason)| (state, reason)).collect();
        assert_eq!((letters.len(), meanings.len()), (LETTERS.len(), LETTERS.len()));
        assert!(!letters.contains(&NOTHING));
    }

    #[test]
    fn only_finished_phases_have_letters_and_failed_ones_have_none() {
        assert!(LETTERS.iter().all(|&(_, state, _)| state.is_terminal() && state != PhaseState::Failed));
    }
}
