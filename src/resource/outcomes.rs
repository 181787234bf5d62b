//! The letters of `status.outcomes`: what is left of a finished phase whose row was given up for room.
//!
//! A letter stands for a state and its reason, both exactly. Failed phases have none: their rows stay, because people
//! read them and Retry asks about them.

use jiff::Timestamp;

use crate::{
    engine::{PhaseReason, PhaseRecord, PhaseState},
    manifest::PhaseId,
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
/// Lost are attempt, offers, message, blockedBy, runtime, progress, heartbeat and times. Kept, by keeping the row, is
/// whatever a later edit, request or verdict asks about: another run than the others', a Use, satisfied waits on other
/// manifests, and the marks of older peers and edits.
pub(super) fn letter(row: &PhaseRecord, run: u32) -> Option<char> {
    let plain =
        row.run == run && row.released.is_empty() && !row.ignored && !row.used && !row.superseded && !row.tokenless;
    let known = LETTERS.iter().find(|&&(_, state, reason)| state == row.state && reason == row.reason);
    known.filter(|_| plain).map(|&(letter, ..)| letter)
}

/// The row that a letter is read back as; absent for a letter that nobody wrote.
pub(super) fn row(letter: char, id: &PhaseId, run: u32, started_at: Timestamp) -> Option<PhaseRecord> {
    let &(_, state, reason) = LETTERS.iter().find(|&&(known, ..)| known == letter)?;
    Some(PhaseRecord { reason, ..fresh(id, state, run, started_at) })
}

/// A row of which nothing is remembered but where it is.
pub(super) fn fresh(id: &PhaseId, state: PhaseState, run: u32, started_at: Timestamp) -> PhaseRecord {
    PhaseRecord {
        id: id.clone(),
        state,
        run,
        attempt: 0,
        offers: 0,
        reason: None,
        message: String::new(),
        blocked_by: Vec::new(),
        runtime: None,
        progress: None,
        since: started_at,
        due: None,
        started_at: None,
        finished_at: None,
        released: Vec::new(),
        ignored: false,
        used: false,
        superseded: false,
        tokenless: false,
        heartbeat: None,
    }
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
