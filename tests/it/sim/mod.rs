//! The whole operator in a deterministic simulation: the real reconcile, session tasks and status writer, over a fake
//! API server and a fake bus, on one thread and in virtual time.
//!
//! Three kinds of schedules. *One mishap*: a crash, a lost answer, a stale watch at every single effect of every
//! scenario. *Safety*: storms of everything at once, and no promise is broken. *Liveness*: the storm ends, the session
//! gets where the reference says, and then nothing is written or said any more.
//!
//! `PMP_SIM_SCHEDULES=20000` runs more storms, `PMP_SIM_SEED=17` replays one; every failure prints how to replay it.

mod api;
mod bus;
mod checks;
mod fates;
mod peer;
mod scenarios;
mod stage;
mod trace;
mod worker;
mod world;

use fates::{Climate, Mishap, Sky};
use rand::{SeedableRng, rngs::SmallRng};
use scenarios::Scenario;
use stage::{Mode, Outcome, play};

/// Storms of one `make test`, of each mode.
const STORMS: u64 = 1500;

/// Lines of a trace that a failure shows.
const LINES_SHOWN: usize = 120;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Two threads, because that is what the machine has.
fn on_two_threads<T: Send + Sync>(jobs: &[T], run: impl Fn(&T) + Sync) {
    std::thread::scope(|scope| {
        for lane in 0..2 {
            let run = &run;
            scope.spawn(move || jobs.iter().skip(lane).step_by(2).for_each(run));
        }
    });
}

fn expect_clean(what: &str, outcome: &Outcome) {
    if outcome.violations.is_empty() {
        return;
    }
    let from = outcome.lines.len().saturating_sub(LINES_SHOWN);
    let lines = outcome.lines[from..].join("\n");
    panic!("{what}: {}\n{lines}", outcome.violations.join("; "));
}

/// The scenario and the weather that a seed means.
fn storm(seed: u64) -> (&'static Scenario, Sky) {
    let mut rng = SmallRng::seed_from_u64(seed ^ 0x5707_3a11);
    let scenarios = &scenarios::ALL;
    let scenario = &scenarios[usize::try_from(seed).expect("a small number") % scenarios.len()];
    (scenario, Sky::Storm(Climate::thrown(&mut rng)))
}

fn storms(mode: Mode) {
    let seeds: Vec<u64> = match number("PMP_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("PMP_SIM_SCHEDULES").map_or(STORMS, |schedules| schedules / 2)).collect(),
    };
    on_two_threads(&seeds, |&seed| {
        let (scenario, sky) = storm(seed);
        let outcome = play(scenario, seed, sky, mode);
        expect_clean(&format!("{} ({mode:?}): replay with PMP_SIM_SEED={seed}", scenario.name), &outcome);
    });
}

#[test]
fn every_scenario_ends_as_it_should_when_nothing_goes_wrong() {
    for scenario in &scenarios::ALL {
        let outcome = play(scenario, 0, Sky::Calm, Mode::Liveness);
        expect_clean(scenario.name, &outcome);
    }
}

#[test]
fn one_mishap_at_any_effect_of_any_scenario_changes_nothing_in_the_end() {
    let mut jobs = Vec::new();
    for scenario in &scenarios::ALL {
        let effects = play(scenario, 0, Sky::Calm, Mode::Liveness).effects;
        jobs.extend((1..=effects).flat_map(|effect| Mishap::ALL.map(|mishap| (scenario, effect, mishap))));
    }
    on_two_threads(&jobs, |&(scenario, effect, mishap)| {
        let outcome = play(scenario, effect, Sky::At { effect, mishap }, Mode::Liveness);
        expect_clean(&format!("{}: {mishap:?} at effect {effect}", scenario.name), &outcome);
    });
}

#[test]
fn no_storm_breaks_a_promise() {
    storms(Mode::Safety);
}

#[test]
fn after_every_storm_the_session_gets_where_the_reference_says() {
    storms(Mode::Liveness);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..40 {
        let (scenario, sky) = storm(seed);
        let traces = [(); 2].map(|()| play(scenario, seed, sky, Mode::Safety));
        if traces[0].hash != traces[1].hash {
            let differ = traces[0].lines.iter().zip(&traces[1].lines).find(|(one, other)| one != other);
            panic!("{}: seed {seed} gave two traces: {differ:#?}", scenario.name);
        }
    }
}
