//! Random small plans, settings and requests: three to seven phases find what thousands would.

use std::{num::NonZeroU32, time::Duration};

use pmp::{
    engine::{Backoff, FailurePolicy, Pace, Settings, Shutdown, Strategy, Timeouts},
    manifest::{
        FailureAction, Handler, InstanceMode, Jitter, OnExhausted, Phase, PhaseId, PhaseSpec, Plan, SuccessAction,
        WaitFor,
    },
};
use rand::{RngExt, rngs::SmallRng};

/// Phases `a`, `b`, ...; each waits for some before it.
pub fn plan(rng: &mut SmallRng) -> Plan {
    let n = rng.random_range(1..=7_u8);
    let id = |i: u8| PhaseId::new(&char::from(b'a' + i).to_string()).unwrap();
    let phases = (0..n)
        .map(|i| {
            let waits = (0..i).filter(|_| rng.random_bool(0.35)).map(id).collect();
            Phase { id: id(i), spec: spec(rng, waits) }
        })
        .collect();
    Plan::new(phases).unwrap()
}

fn spec(rng: &mut SmallRng, waits: Vec<PhaseId>) -> PhaseSpec {
    let messages = vec!["said".to_owned()];
    let action = if rng.random_bool(0.3) { FailureAction::Continue } else { FailureAction::Raise };
    PhaseSpec {
        instance_mode: if rng.random_bool(0.1) { InstanceMode::OnUse } else { InstanceMode::Immediate },
        wait_for: WaitFor { phases: waits, timeout: rng.random_bool(0.1).then(|| Duration::from_secs(20)) },
        max_attempts: rng.random_range(1..=3),
        on_failure: Handler { action, messages: messages.clone(), ..Handler::default() },
        on_success: Handler { action: SuccessAction::Continue, messages, ..Handler::default() },
        priority: rng.random_range(0..2),
        on_exhausted: if rng.random_bool(0.1) { OnExhausted::Hold } else { OnExhausted::Fail },
        ..PhaseSpec::default()
    }
}

/// The plan with one phase changed, added, removed or merely described anew.
pub fn edited(rng: &mut SmallRng, plan: &Plan) -> Plan {
    let mut phases = plan.phases().to_vec();
    match rng.random_range(0..4) {
        0 if !phases.is_empty() => {
            let i = rng.random_range(0..phases.len());
            phases[i].spec.extensions.insert("x-edit".to_owned(), rng.random::<u32>().into());
        }
        1 if phases.len() > 1 => {
            let gone = phases.remove(rng.random_range(0..phases.len())).id;
            for phase in &mut phases {
                phase.spec.wait_for.phases.retain(|on| *on != gone);
            }
        }
        2 => {
            let free = (b'a'..=b'h').map(|c| PhaseId::new(&char::from(c).to_string()).unwrap());
            if let Some(id) = free.into_iter().find(|id| phases.iter().all(|phase| phase.id != *id)) {
                let waits = phases.iter().map(|phase| phase.id.clone()).filter(|_| rng.random_bool(0.3)).collect();
                phases.push(Phase { id, spec: spec(rng, waits) });
            }
        }
        _ => {
            for phase in &mut phases {
                phase.spec.description.push('.');
            }
        }
    }
    Plan::new(phases).unwrap()
}

pub fn settings(rng: &mut SmallRng) -> Settings {
    Settings {
        parallelism: NonZeroU32::new(rng.random_range(0..3)),
        failure_policy: if rng.random_bool(0.5) { FailurePolicy::Stop } else { FailurePolicy::Isolate },
        backoff: Backoff {
            initial: Duration::from_secs(1),
            factor: 2.0,
            max: Duration::from_secs(4),
            jitter: Jitter::Full,
        },
        timeouts: Timeouts {
            offer: Duration::from_secs(5),
            start: rng.random_bool(0.2).then(|| Duration::from_secs(15)),
            attempt: rng.random_bool(0.2).then(|| Duration::from_secs(30)),
            heartbeat: rng.random_bool(0.2).then(|| Duration::from_secs(12)),
            cancel: Duration::from_secs(3),
            revision: rng.random_bool(0.05).then(|| Duration::from_mins(5)),
        },
        ..Settings::default()
    }
}

/// What a person might change while it runs.
pub fn nudged(rng: &mut SmallRng, settings: &Settings, plan: &Plan) -> Settings {
    let mut settings = settings.clone();
    match rng.random_range(0..8) {
        0..=3 => {
            settings.pace = if settings.pace == Pace::Going { Pace::Suspended } else { Pace::Going };
        }
        4 => settings.parallelism = NonZeroU32::new(rng.random_range(0..3)),
        5 => {
            settings.shutdown = match settings.shutdown {
                Some(_) => None,
                None if rng.random_bool(0.5) => Some(Shutdown::Drain),
                None => Some(Shutdown::Cancel),
            };
        }
        6 => {
            let some = (!plan.is_empty() && rng.random_bool(0.5)).then(|| rng.random_range(0..plan.len()));
            settings.target_phase = some.map(|i| plan.phases()[i].id.clone());
        }
        _ => settings.timeouts.start = rng.random_bool(0.5).then(|| Duration::from_secs(9)),
    }
    settings
}

pub fn strategy(rng: &mut SmallRng) -> Strategy {
    if rng.random_bool(0.8) { Strategy::Hybrid } else { Strategy::Directed }
}
