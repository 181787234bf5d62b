//! The whole operator in a deterministic simulation: the real reconcile, session tasks and status writer, over a fake
//! API server and a fake bus, on one thread and in virtual time.
//!
//! Three kinds of schedules. *One mishap*: a crash, a lost answer, a stale watch at every single effect of every
//! scenario. *Safety*: storms of everything at once, and no promise is broken. *Liveness*: the storm ends, the session
//! gets where the reference says, and then nothing is written or said any more.
//!
//! `PMP_SIM_SCHEDULES=20000` runs more storms, `PMP_SIM_SEED=17` replays one, `PMP_SIM_SCENARIO=chain` keeps to one scenario
//! where every effect is gone through. A failure lists all that broke and shows the end of the first trace, `PMP_SIM_LINES=9999`
//! more of it.

mod api;
mod bus;
mod checks;
mod conformance;
mod fates;
mod peer;
mod scenarios;
mod stage;
mod trace;
mod worker;
mod world;

use std::sync::Mutex;

use bus::Server;
use fates::{Climate, Mishap, Sky};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use scenarios::{Bears, Scenario};
use stage::{Mode, Outcome, Schedule, play};

/// The simulation's bus with nothing going wrong, for the laws of every bus and of all streams.
pub fn calm_bus() -> pmp::bus::Bus {
    let shared = world::Shared::new(fates::Fates::new(0, Sky::Calm));
    let nats = bus::Nats::new(pmp::sessions::Clock::System, shared, Server::Keeping);
    nats.connect(&world::Door::new("a person", world::Role::Person))
}

/// Storms of one `make test`, of each mode.
const STORMS: u64 = 500;

/// Lines of a trace that a failure shows, unless it is asked for more.
const LINES_SHOWN: u64 = 120;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Plays all on two threads, because that is what the machine has; fails with all that broke, and the trace of the first.
fn play_all<T: Send + Sync>(jobs: &[T], play: impl Fn(&T) -> (String, Outcome) + Sync) {
    let broken = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for lane in 0..2 {
            let (play, broken) = (&play, &broken);
            scope.spawn(move || {
                for job in jobs.iter().skip(lane).step_by(2) {
                    let (what, outcome) = play(job);
                    if !outcome.violations.is_empty() {
                        broken.lock().expect("nobody panics while holding it").push((what, outcome));
                    }
                }
            });
        }
    });
    let broken = broken.into_inner().expect("nobody panicked while holding it");
    let Some((first, outcome)) = broken.first() else { return };
    let list: Vec<String> = broken.iter().map(|(what, outcome)| said(what, outcome)).collect();
    let shown = usize::try_from(number("PMP_SIM_LINES").unwrap_or(LINES_SHOWN)).unwrap_or(usize::MAX);
    let from = outcome.lines.len().saturating_sub(shown);
    let lines = outcome.lines[from..].join("\n");
    panic!("{} of {} schedules broke:\n{}\n{first}:\n{lines}", broken.len(), jobs.len(), list.join("\n"));
}

fn said(what: &str, outcome: &Outcome) -> String {
    format!("{what}: {}", outcome.violations.join("; "))
}

/// The scenario, the weather and the server that a seed means.
fn storm(seed: u64, mode: Mode) -> (&'static Scenario, Schedule) {
    let mut rng = SmallRng::seed_from_u64(seed ^ 0x5707_3a11);
    let scenarios = &scenarios::ALL;
    let scenario = &scenarios[usize::try_from(seed).expect("a small number") % scenarios.len()];
    let sky = Sky::Storm(Climate::thrown(&mut rng));
    let servers = servers(scenario);
    let server = servers[rng.random_range(0..servers.len())];
    (scenario, Schedule { seed, sky, server, mode })
}

/// What a scenario can be played on.
fn servers(scenario: &Scenario) -> &'static [Server] {
    match scenario.bears {
        Bears::Nothing => &[Server::Keeping],
        Bears::Loss | Bears::Deaths => &[Server::Plain, Server::Keeping],
    }
}

fn calmly(scenario: &Scenario, server: Server) -> Outcome {
    play(scenario, Schedule { seed: 0, sky: Sky::Calm, server, mode: Mode::Liveness })
}

fn storms(mode: Mode) {
    let seeds: Vec<u64> = match number("PMP_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("PMP_SIM_SCHEDULES").map_or(STORMS, |schedules| schedules / 2)).collect(),
    };
    play_all(&seeds, |&seed| {
        let (scenario, schedule) = storm(seed, mode);
        let what = format!("{} ({:?}, {mode:?}), PMP_SIM_SEED={seed}", scenario.name, schedule.server);
        (what, play(scenario, schedule))
    });
}

#[test]
fn every_scenario_ends_as_it_should_when_nothing_goes_wrong() {
    let jobs =
        scenarios::ALL.iter().flat_map(|scenario| servers(scenario).iter().map(move |&server| (scenario, server)));
    play_all(&jobs.collect::<Vec<_>>(), |&(scenario, server)| {
        (format!("{} ({server:?})", scenario.name), calmly(scenario, server))
    });
}

#[test]
fn one_mishap_at_any_effect_of_any_scenario_changes_nothing_in_the_end() {
    let mut jobs = Vec::new();
    let only = std::env::var("PMP_SIM_SCENARIO").ok();
    for scenario in scenarios::ALL.iter().filter(|scenario| only.as_ref().is_none_or(|name| name == scenario.name)) {
        for &server in servers(scenario) {
            for (effect, kind) in (1..).zip(calmly(scenario, server).effects) {
                let mishaps = kind
                    .mishaps()
                    .iter()
                    .filter(|mishap| server == servers(scenario)[0] || kind.concerns_the_bus(**mishap));
                jobs.extend(mishaps.map(|&mishap| (scenario, server, effect, mishap)));
            }
        }
    }
    play_all(&jobs, |&(scenario, server, effect, mishap)| {
        let what = format!("{} ({server:?}), {mishap:?} at effect {effect}", scenario.name);
        let sky = Sky::At { effect, mishap };
        (what, play(scenario, Schedule { seed: effect, sky, server, mode: Mode::Liveness }))
    });
}

/// A process that died after its takeover left the next one with a cache that knew of no verdict: it began the finished
/// session again every second, two writes each, until the cache had caught up.
#[test]
fn a_verdict_that_the_cache_has_not_seen_yet_does_not_begin_the_session_again() {
    let sky = Sky::At { effect: 1, mishap: Mishap::CrashStale };
    play_all(&[1_u64, 2, 3], |&seed| {
        let schedule = Schedule { seed, sky, server: Server::Plain, mode: Mode::Liveness };
        ("chain, CrashStale at effect 1".to_owned(), play(&scenarios::ALL[0], schedule))
    });
}

/// Storms that broke something once, with the scenario that they are of and what was wrong.
const BROKE_ONCE: [(u64, Mode, &str, &str); 9] = [
    (
        301,
        Mode::Liveness,
        "early peer, once",
        "what was missed was not read, since the stream could not be read at first",
    ),
    (2768, Mode::Liveness, "runtime strategy", "a walker that lost its words heard .start again and again"),
    (5810, Mode::Liveness, "runtime strategy", "a walker that lost one word was never asked for it"),
    (90691, Mode::Safety, "edit", "an order in the moment of the stop began the session beside its last write"),
    (59769, Mode::Safety, "use", "a report of the past was taken for the twin of an answer, which nobody heard"),
    (
        58151,
        Mode::Safety,
        "delete and recreate",
        "a deposed process that had stored nothing granted what it had not offered",
    ),
    (32975, Mode::Safety, "commands", "a deposed process granted again what its rival had just offered"),
    (4997, Mode::Safety, "delete and recreate", "a process that was not heard until it was deposed offered at once"),
    (58213, Mode::Safety, "fan", "a write was refused, whose the session is could not be read, and offers went on"),
];

#[test]
fn what_broke_once_holds() {
    let jobs = BROKE_ONCE.map(|(seed, mode, name, what)| {
        let (scenario, schedule) = storm(seed, mode);
        assert_eq!(scenario.name, name, "seed {seed} means another scenario by now");
        (scenario, schedule, what)
    });
    play_all(&jobs, |&(scenario, schedule, what)| {
        (format!("{} ({what}), PMP_SIM_SEED={}", scenario.name, schedule.seed), play(scenario, schedule))
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
        let (scenario, schedule) = storm(seed, Mode::Safety);
        let traces = [(); 2].map(|()| play(scenario, schedule));
        if traces[0].hash != traces[1].hash {
            let differ = traces[0].lines.iter().zip(&traces[1].lines).position(|(one, other)| one != other);
            let ends = traces.map(|trace| {
                let until = differ.map_or(trace.lines.len(), |at| at + 3).min(trace.lines.len());
                trace.lines[until.saturating_sub(12)..until].to_vec()
            });
            panic!("{}: seed {seed} gave two traces: {ends:#?}", scenario.name);
        }
    }
}
