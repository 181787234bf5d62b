//! An operator that is killed again and again at any time, not at chosen phases: while it starts, takes over, listens,
//! writes. A few times in `make test`; `make soak` sets `PMP_SOAK_KILLS` and `PMP_SOAK_SECONDS` higher.

use std::{
    env,
    io::{self, Write as _},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;

use super::{
    figures::Figures,
    scene::{Bus, LONG, PHASES, Scene},
};
use crate::{resource::cluster, support::Signal};

/// Between two lines that say how far it is.
const PROGRESS: usize = 25;
/// Kills or not, a run is over within this time: one of 200 phases takes a tenth of it by itself.
const RUN_MAX: u64 = 120;

#[tokio::test]
async fn an_operator_killed_at_any_time_runs_every_phase_once() {
    let kills = setting("PMP_SOAK_KILLS", 6);
    let seconds = setting("PMP_SOAK_SECONDS", 24);
    let slot = Duration::from_secs(seconds) / u32::try_from(kills).expect("no year of kills");
    let seed = setting("PMP_SOAK_SEED", u64::from(std::process::id()));
    let mut random = StdRng::seed_from_u64(seed);
    let bus = if random.random() { Bus::JetStream } else { Bus::Plain };
    let server = bus.server().await;
    let scene = Scene::set("soak", &cluster().await, &server).await;
    let mut operator = scene.operator();
    let (began, mut run_began, mut run, mut total) = (Instant::now(), Instant::now(), 0, Figures::default());
    scene.submit("soak-0", json!({})).await;
    for kill in 0..kills {
        // One in every slot of time, anywhere in it: they are spread, and may follow each other at once.
        let at = slot * u32::try_from(kill).expect("fewer than billions") + slot.mul_f64(random.random());
        tokio::time::sleep(at.saturating_sub(began.elapsed())).await;
        operator.signal(Signal::KILL);
        operator.wait(LONG).await;
        operator = scene.operator();
        if scene.ledger(&format!("soak-{run}")).ended() == PHASES {
            total = total.and(scene.succeeded(&format!("soak-{run}"), 0, run_began).await);
            run += 1;
            run_began = Instant::now();
            scene.submit(&format!("soak-{run}"), json!({})).await;
        }
        if (kill + 1) % PROGRESS == 0 {
            scene.state_of(&format!("soak-{run}")).await;
            tell(&format!("soak: {} of {kills} kills, {} runs done, {:.0?}", kill + 1, run, began.elapsed()));
        }
    }
    assert!(run >= seconds / RUN_MAX, "only {run} runs came to their end while the operator was killed");
    let last = scene.succeeded(&format!("soak-{run}"), kills, run_began).await;
    total.and(last).tell(&format!("kill -9 of the operator at any time, {bus}, seed {seed}"));
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Past what the test harness catches, which would show it only when all is over.
fn tell(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
