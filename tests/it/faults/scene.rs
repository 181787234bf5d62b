//! A run to be disturbed: 200 phases, two runtimes, and an operator whose status writes are slow.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt, fs,
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
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

/// For the line of figures.
impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::JetStream { "with JetStream" } else { "without JetStream" })
    }
}

/// Whether runtimes are to die in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runtimes {
    /// No. An attempt that were lost would fail the run, since there is no other.
    Live,
    /// No, and they give a sign of life so often that an operator that hung would miss three.
    LiveAndTell,
    /// Yes: six seconds of silence end an attempt, and the next begins. Three would also end one on a machine that was busy.
    Die,
}

impl Runtimes {
    fn heartbeat_seconds(self) -> u32 {
        if self == Self::Live { 10 } else { 2 }
    }

    /// One phase may be hit several times.
    fn attempts_max(self) -> u32 {
        if self == Self::Die { 10 } else { 1 }
    }
}

pub struct Scene {
    pub bed: Bed,
    /// A copy of the Python one, and the shipped one.
    pub runtimes: Vec<Process>,
    /// In front of the API server.
    pub slow: SlowApi,
    /// Phases beside the 200 that run only when somebody asks for them.
    pub spares: usize,
    fate: Runtimes,
    /// When runtimes died with what they ran, since the epoch, by process id.
    killed: BTreeMap<u32, Duration>,
    /// What operators and runtimes have said, those that are gone included.
    logs: RefCell<Vec<PathBuf>>,
}

impl Scene {
    /// With two runtimes, and no operator yet.
    pub async fn set(name: &str, cluster: &Cluster, nats: &Nats) -> Self {
        Self::make(name, cluster, nats, Runtimes::Live).await
    }

    /// With two runtimes that count as lost after six seconds of silence.
    pub async fn with_talkative_runtimes(name: &str, cluster: &Cluster, nats: &Nats) -> Self {
        Self::make(name, cluster, nats, Runtimes::LiveAndTell).await
    }

    /// With two runtimes whose end is noticed soon, and phases that are tried again after it.
    pub async fn with_mortal_runtimes(name: &str, cluster: &Cluster, nats: &Nats) -> Self {
        Self::make(name, cluster, nats, Runtimes::Die).await
    }

    async fn make(name: &str, cluster: &Cluster, nats: &Nats, fate: Runtimes) -> Self {
        let mut bed = Bed::on(cluster, &nats.url, name).await;
        let slow = SlowApi::to(cluster, STATUS_DELAY).await;
        bed.kubeconfig.clone_from(&slow.kubeconfig);
        let (killed, logs) = (BTreeMap::new(), RefCell::default());
        let mut scene = Self { bed, runtimes: Vec::new(), slow, spares: 0, fate, killed, logs };
        for which in 0..2 {
            let runtime = scene.runtime(which).await;
            scene.runtimes.push(runtime);
        }
        scene
    }

    /// One more operator.
    pub fn operator(&self) -> Process {
        let operator = self.bed.operator();
        self.logs.borrow_mut().push(operator.stderr_file());
        operator
    }

    /// One more runtime for this place, under a name that no other had.
    async fn runtime(&self, which: usize) -> Process {
        let (name, seconds) = (unique("runtime"), self.fate.heartbeat_seconds());
        let with =
            |heartbeat: String| ["--concurrency".to_owned(), "4".to_owned(), "--heartbeat".to_owned(), heartbeat];
        let runtime = if which == 0 {
            let arguments = with(seconds.to_string());
            self.bed.runtime_with(&name, &arguments.each_ref().map(String::as_str)).await
        } else {
            let arguments = with(format!("{seconds}s"));
            self.bed.shipped_runtime_with(&name, &arguments.each_ref().map(String::as_str)).await
        };
        self.logs.borrow_mut().push(runtime.stderr_file());
        runtime
    }

    /// Kills a runtime with all that it runs, and starts another of its kind in its place.
    pub async fn replace_runtime(&mut self, which: usize) {
        let runtime = &mut self.runtimes[which];
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
        self.killed.insert(runtime.pid(), now);
        runtime.kill_with_children();
        self.runtimes[which] = self.runtime(which).await;
    }

    /// Twenty layers of ten phases; a phase waits for two of the layer before. Then the spares, which wait for nothing.
    /// `more` goes over what the spec says.
    pub async fn submit(&self, name: &str, more: Value) {
        let spares = (0..self.spares).map(|n| self.spare(n));
        let mut spec = json!({
            "phases": (0..PHASES).map(|n| self.phase(n)).chain(spares).collect::<Value>(),
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
        self.writing(&id(n), &waits.iter().map(String::as_str).collect::<Vec<_>>(), work)
    }

    fn spare(&self, n: usize) -> Value {
        let mut phase = self.writing(&spare_id(n), &[], Duration::from_millis(20));
        phase["spec"]["instanceMode"] = json!("onUse");
        phase
    }

    fn writing(&self, id: &str, waits: &[&str], work: Duration) -> Value {
        let mut phase = self.bed.shell(id, waits, &ledger::line(work));
        phase["spec"]["retry"] = json!({"maxAttempts": self.fate.attempts_max()});
        phase
    }

    /// Asks for a spare over the bus, once, whether anybody listens or not.
    pub async fn use_spare(&self, name: &str, n: usize) {
        let client = self.bed.nats().await;
        let body = json!({"command": "x-use", "x-phaseId": spare_id(n)}).to_string();
        client.publish(self.bed.subject(name, "control"), body.into()).await.expect("the server is there");
        client.flush().await.expect("the server is there");
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

    /// Waits for the verdict on all phases, spares included, judges the run, and gives its figures; `faults` and `began`
    /// are the caller's.
    pub async fn succeeded(&self, name: &str, faults: usize, began: Instant) -> Figures {
        let phases = PHASES + self.spares;
        let progress = format!("{phases}/{phases}");
        eventually(LONG, &format!("{name} has its verdict on {progress}"), async || {
            let status = self.state_of(name).await?;
            (status["state"] == "Succeeded" && status["progress"] == progress).then_some(())
        })
        .await;
        let took = began.elapsed();
        let ledger = self.ledger(name);
        ledger.assert_once((0..PHASES).map(id).chain((0..self.spares).map(spare_id)), &self.killed);
        self.assert_nothing_panicked();
        Figures { faults, phases, executed: ledger.begun(), took, longest_gap: ledger.longest_gap() }
    }

    fn assert_nothing_panicked(&self) {
        for log in &*self.logs.borrow() {
            let text = fs::read_to_string(log).expect("a process has a log from its start");
            assert!(!text.contains("panicked"), "{}: {text}", log.display());
        }
    }
}

fn id(n: usize) -> String {
    format!("p{n}")
}

fn spare_id(n: usize) -> String {
    format!("u{n}")
}

/// After how many ended phases something is done, so that it is done twenty times spread over the whole run: never before
/// the first has ended, when there is hardly a run yet.
pub fn moments() -> impl Iterator<Item = usize> {
    (0..KILLS).map(|k| (k + 1) * PHASES / (KILLS + 1))
}
