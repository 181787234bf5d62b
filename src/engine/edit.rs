//! A new revision: what is kept, what runs again, what is cancelled (design: "Edits, revisions, diff").

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;

use super::{
    Edit, Keep, PhaseRecord, PhaseState,
    session::{Row, Session, is_satisfied},
    steering::is_final_cancel,
};
use crate::manifest::PhaseId;

/// What an edit does to one phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Neither it nor anything it waits for changed, and there is a result or an attempt to keep.
    Stays,
    /// It runs; it ends unjudged and then runs again as it is now.
    EndsUnjudged,
    /// Its next run is the one that counts.
    RunsAnew,
}

impl Session {
    pub(super) fn edit(&mut self, edit: &Edit, now: Timestamp) {
        let old = std::mem::replace(&mut self.plan, Arc::clone(&edit.plan));
        let mut left: HashMap<PhaseId, (usize, PhaseRecord)> =
            self.rows.iter().enumerate().map(|(i, row)| (row.record.id.clone(), (i, row.record.clone()))).collect();
        let floor = self.runs_removed + 1;
        let mut rows = Vec::with_capacity(edit.plan.len());
        let mut withdrawn = Vec::new();
        for ix in edit.plan.indices() {
            let id = edit.plan.id(ix);
            let Some((_, mut record)) = left.remove(id) else {
                rows.push(Row::new(PhaseRecord::fresh(id, floor, now), now));
                continue;
            };
            let is_unchanged = edit.keep == Keep::Unchanged
                && old.index_of(id.as_str()).is_some_and(|was| old.phase_digest(was) == edit.plan.phase_digest(ix));
            match fate(&record, is_unchanged) {
                Fate::Stays => {}
                Fate::EndsUnjudged => record.superseded = true,
                Fate::RunsAnew => {
                    if record.state == PhaseState::Offered || record.offers > 0 {
                        withdrawn.push(record.clone());
                    }
                    record = reopened(record, now);
                }
            }
            rows.push(Row::new(record, now));
        }
        let mut removed: Vec<(usize, PhaseRecord)> = left.into_values().collect();
        removed.sort_unstable_by_key(|(i, _)| *i);
        for (_, record) in removed {
            self.runs_removed = self.runs_removed.max(record.run);
            if record.state.is_bound() || record.offers > 0 {
                withdrawn.push(record);
            }
        }
        for record in withdrawn {
            let token = super::AttemptToken::new(&self.uid, &record.id, record.run, record.attempt);
            let control = super::Control::Cancel { phase: record.id, token, runtime: record.runtime };
            self.push(super::Output::Control(control));
        }
        self.rows = rows;
        self.revision = edit.revision;
        self.strategy = edit.strategy;
        self.begin_revision(now);
        self.relink(now);
        self.obey_settings(now);
    }
}

fn fate(record: &PhaseRecord, is_unchanged: bool) -> Fate {
    // What ends with the old revision is over, changed or not; the new one wants it anew.
    let is_ending = record.state == PhaseState::Cancelling && is_final_cancel(record.reason);
    let is_open = !record.state.is_terminal() && record.state != PhaseState::Held && !is_ending;
    match () {
        () if is_unchanged && (is_satisfied(record) || is_open) => Fate::Stays,
        () if record.state.is_bound() => Fate::EndsUnjudged,
        () => Fate::RunsAnew,
    }
}

/// The next run, also where no offer is known of: a crash may have forgotten one, and the same token must never name
/// two different phases.
fn reopened(record: PhaseRecord, now: Timestamp) -> PhaseRecord {
    let run = record.run + 1;
    PhaseRecord { released: record.released, used: record.used, ..PhaseRecord::fresh(&record.id, run, now) }
}
