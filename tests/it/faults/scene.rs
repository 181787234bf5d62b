//! A run to be disturbed: 200 phases, two runtimes, and an operator whose status writes are slow.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{figures::Figures, ledger, ledger::Ledger};
use crate::{
    lifecycle::bed::Bed,
    support::{Cluster, Nats, NatsConfig, Process, SlowApi, eventually, nats, unique},
};

pub const PHASES: usize = 200;
/// How often a process is killed in a run.
pub const KILLS: usize = 20;
/// For a run with all its faults, on a machine that does other things.
pub const LONG: Duration = Duration::from_mins(5);

const COLUMNS: usize = 10;
/// An API server that a test has stopped answers late or never.
const CALL_MAX: Duration = Duration::from_secs(5);
const STATUS_DELAY: Duration = Duration::from_secs(1);

/// What the bus can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    JetStream,
    Plain,
}

impl Bus {
    /// A server of the test's own.
    pub async fn server(self) -> Nats {
        let config = NatsConfig::default();
        nats(if self == Self::JetStream { config } else { config.without_jetstream() }).await
    }
}

/// Whether runtimes are to die in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runtimes {
    /// No. An attempt that were lost would fail the run, since there is no other.
    Live,
    /// Yes: three seconds of silence end an attempt, and the next begins.
    Die,
}

impl Runtimes {
    fn heartbeat_seconds(self) -> &'static str {
        if self == Self::Live { "10" } else { "1" }
    }

    /// One phase may be hit several times.
    fn attempts_max(self) -> u32 {
        if self == Self::Live { 1 } else { 10 }
    }
}

pub struct Scene {
    pub bed: Bed,
    pub runtimes: Vec<Process>,
    fate: Runtimes,
    /// Process ids of runtimes that died with what they ran.
    killed: BTreeSet<u32>,
    _slow: SlowApi,
}

impl Scene {
    /// With two runtimes, and no operator yet.
    pub async fn set(name: &str, cluster: &Cluster, nats: &Nats) -> Self {
        Self::make(name, cluster, nats, Runtimes::Live).await
    }

    /// With two runtimes whose end is noticed soon, and phases that are tried again after it.
    pub async fn with_mortal_runtimes(name: &str, cluster: &Cluster, nats: &Nats) -> Self {
        Self::make(name, cluster, nats, Runtimes::Die).await
    }

    async fn make(name: &str, cluster: &Cluster, nats: &Nats, fate: Runtimes) -> Self {
        let mut bed = Bed::on(cluster, &nats.url, name).await;
        let slow = SlowApi::to(cluster, STATUS_DELAY).await;
        bed.kubeconfig.clone_from(&slow.kubeconfig);
        let mut scene = Self { bed, runtimes: Vec::new(), fate, killed: BTreeSet::new(), _slow: slow };
        for _ in 0..2 {
            let runtime = scene.runtime().await;
            scene.runtimes.push(runtime);
        }
        scene
    }

    /// One more runtime, under a name that no other had.
    async fn runtime(&self) -> Process {
        let arguments = ["--concurrency", "4", "--heartbeat", self.fate.heartbeat_seconds()];
        self.bed.runtime_with(&unique("runtime"), &arguments).await
    }

    /// Kills a runtime with all that it runs, and starts another in its place.
    pub async fn replace_runtime(&mut self, which: usize) {
        let runtime = &mut self.runtimes[which];
        self.killed.insert(runtime.pid());
        runtime.kill_with_children();
        self.runtimes[which] = self.runtime().await;
    }

    /// Twenty layers of ten phases; a phase waits for two of the layer before. `more` goes over what the spec says.
    pub async fn submit(&self, name: &str, more: Value) {
        let mut spec = json!({
            "phases": (0..PHASES).map(|n| self.phase(n)).collect::<Value>(),
            "timeouts": {"offer": "1s"},
            "backoff": {"initial": "100ms", "max": "1s"},
        });
        for (key, value) in more.as_object().expect("more of a spec is an object") {
            spec[key] = value.clone();
        }
        self.bed.create(name, spec).await;
    }

    fn phase(&self, n: usize) -> Value {
        let (layer, column) = (n / COLUMNS, n % COLUMNS);
        let before =
            layer.checked_sub(1).map(|layer| [layer * COLUMNS + column, layer * COLUMNS + (column + 1) % COLUMNS]);
        let waits: Vec<_> = before.into_iter().flatten().map(id).collect();
        // 73 and 181 have no divisor in common, so the lengths are spread evenly and look like nothing.
        let work = Duration::from_millis(20 + (n as u64 * 73) % 181);
        let waits: Vec<_> = waits.iter().map(String::as_str).collect();
        let mut phase = self.bed.shell(&id(n), &waits, &ledger::line(work));
        phase["spec"]["retry"] = json!({"maxAttempts": self.fate.attempts_max()});
        phase
    }

    pub fn ledger(&self, name: &str) -> Ledger {
        Ledger::read(&PathBuf::from(self.bed.file(&self.bed.session(name))))
    }

    pub async fn until_ended(&self, name: &str, count: usize) {
        let what = format!("{count} phases of {name} have ended");
        let mut looks = 0_u32;
        eventually(LONG, &what, async || {
            // A run that has failed will never come so far; looked at seldom, since the API server has other work.
            looks += 1;
            if looks.is_multiple_of(50) {
                self.state_of(name).await;
            }
            (self.ledger(name).ended() >= count).then_some(())
        })
        .await;
    }

    /// The status, if the API server gives it; fails the test where nothing can become of the run any more.
    pub async fn state_of(&self, name: &str) -> Option<Value> {
        let answer = tokio::time::timeout(CALL_MAX, self.bed.api.get(name)).await;
        let object = answer.ok()?.ok()?;
        let mut status = serde_json::to_value(object.status.unwrap_or_default()).expect("a status is JSON");
        let state = status["state"].as_str().unwrap_or_default();
        if ["Failed", "Cancelled", "SetAside"].contains(&state) {
            let ledger = self.ledger(name);
            let rows = status["phases"].as_array_mut().expect("a session that ended has rows");
            rows.retain(|row| !["Complete", "Cancelled", "UpstreamFailed"].map(Value::from).contains(&row["state"]));
            panic!("{name} did not succeed; {} begun, {} ended: {status:#}", ledger.begun(), ledger.ended());
        }
        Some(status)
    }

    /// Waits for the verdict, judges the run, and gives its figures; `faults` and `began` are the caller's.
    pub async fn succeeded(&self, name: &str, faults: usize, began: Instant) -> Figures {
        let status = eventually(LONG, &format!("{name} has its verdict"), async || {
            self.state_of(name).await.filter(|status| status["state"] == "Succeeded")
        })
        .await;
        let took = began.elapsed();
        assert_eq!(status["progress"], format!("{PHASES}/{PHASES}"));
        let ledger = self.ledger(name);
        ledger.assert_once((0..PHASES).map(id), &self.killed);
        Figures { faults, phases: PHASES, executed: ledger.begun(), took, longest_gap: ledger.longest_gap() }
    }
}

fn id(n: usize) -> String {
    format!("p{n}")
}

/// After how many ended phases something is done, so that it is done twenty times spread over the whole run.
pub fn moments() -> impl Iterator<Item = usize> {
    (0..KILLS).map(|k| k * PHASES / KILLS)
}
