//! Plans and records for the tests of this folder.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{
    engine::{Availability, PhaseRecord, PhaseState, Record, Strategy},
    manifest::{InstanceMode, Phase, PhaseId, PhaseSpec, Plan, WaitFor},
};

pub fn id(text: &str) -> PhaseId {
    PhaseId::new(text).unwrap()
}

pub fn phase(name: &str, waits: &[&str]) -> Phase {
    let wait_for = WaitFor { phases: waits.iter().map(|wait| id(wait)).collect(), timeout: None };
    Phase { id: id(name), spec: PhaseSpec { wait_for, max_attempts: 3, ..PhaseSpec::default() } }
}

pub fn on_use(name: &str, waits: &[&str]) -> Phase {
    let mut phase = phase(name, waits);
    phase.spec.instance_mode = InstanceMode::OnUse;
    phase
}

pub fn plan(phases: Vec<Phase>) -> Arc<Plan> {
    Arc::new(Plan::new(phases).unwrap())
}

/// Milliseconds after the start of the samples' session.
pub fn at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(1_750_000_000_000 + millis).unwrap()
}

/// Every phase Waiting since the start.
pub fn record(plan: &Plan) -> Record {
    let phases = plan.phases().iter().map(|phase| row(&phase.id)).collect();
    Record {
        revision: 1,
        strategy: Strategy::Hybrid,
        started_at: at(0),
        finished_at: None,
        verdict: None,
        paused_since: None,
        paused_total: Duration::ZERO,
        availability: Availability::Unknown,
        heard: false,
        timed_out: false,
        runs_removed: 0,
        phases,
        requests: Vec::new(),
    }
}

fn row(id: &PhaseId) -> PhaseRecord {
    PhaseRecord { state: PhaseState::Waiting, ..PhaseRecord::fresh(id, 1, at(0)) }
}

/// Changes the row of one phase.
pub fn set(record: &mut Record, name: &str, state: PhaseState, change: impl FnOnce(&mut PhaseRecord)) {
    let row = record.phases.iter_mut().find(|row| row.id.as_str() == name).unwrap();
    row.state = state;
    change(row);
}
