//! The model test: the engine under random schedules, judged by a reference so small that it is obviously right.
//!
//! Two modes. *Safety*: drops, duplicates, reorders, crashes, edits and commands, and after every step the invariants
//! of the engine's module documentation. *Liveness*: the same start, then everything heals, and the session must reach
//! the verdict that the reference computes from what the runtimes said.
//!
//! `PMP_MODEL_SCHEDULES=200000` runs more, `PMP_MODEL_SEED=17` replays one; every failure prints its seed.

mod deaf;
mod plans;
mod reference;
mod world;

use world::{Faults, World};

/// Schedules of one `make test`.
const SCHEDULES: u64 = 20_000;

fn for_every_seed(faults: Faults, run: impl Fn(u64) + Sync) {
    let of = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match of("PMP_MODEL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..of("PMP_MODEL_SCHEDULES").unwrap_or(SCHEDULES) / 2,
    };
    // Two threads, because that is what the machine has; the seeds alternate.
    std::thread::scope(|scope| {
        for lane in 0..2 {
            let (run, seeds) = (&run, seeds.clone());
            scope.spawn(move || {
                for seed in seeds.filter(|seed| seed % 2 == lane) {
                    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed)));
                    assert!(outcome.is_ok(), "replay with PMP_MODEL_SEED={seed} ({faults:?})");
                }
            });
        }
    });
}

#[test]
fn no_schedule_breaks_an_invariant() {
    for_every_seed(Faults::All, |seed| {
        let mut world = World::new(seed, Faults::All);
        for _ in 0..80 {
            world.step();
        }
    });
}

#[test]
fn every_schedule_that_heals_reaches_the_verdict_of_the_reference() {
    for_every_seed(Faults::UntilHealed, |seed| {
        let mut world = World::new(seed, Faults::UntilHealed);
        for _ in 0..40 {
            world.step();
        }
        world.heal_and_finish();
    });
}

#[test]
fn a_restored_session_behaves_as_the_one_that_was_stored() {
    for_every_seed(Faults::All, |seed| {
        let mut world = World::new(seed, Faults::All);
        for _ in 0..(20 + seed % 30) {
            world.step();
        }
        world.compare_with_restored();
    });
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..200 {
        let trace = || {
            let mut world = World::new(seed, Faults::All);
            for _ in 0..60 {
                world.step();
            }
            world.into_trace()
        };
        assert_eq!(trace(), trace(), "seed {seed}");
    }
}
