//! The servers of a run, the operator's own process among them, and the runtime that does nothing.

use std::{
    collections::BTreeMap,
    process::Command,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use pmp::{
    bus::{Bus, ConnectOptions},
    protocol::Prefix,
    runtime::{self, Decline, Handle, Job, Labels, Outcome, Runtime, Work},
};
use serde::Serialize;

use crate::support::{Cluster, Nats, NatsConfig, Process, bin, eventually, nats, unique};

const CRD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/phasemanifests.yaml");
const SOON: Duration = Duration::from_mins(1);

/// How the NATS server is set up: the operator finds out by itself what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BusMode {
    Plain,
    Jetstream,
}

impl BusMode {
    pub const ALL: [Self; 2] = [Self::Plain, Self::Jetstream];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Jetstream => "jetstream",
        }
    }

    pub async fn server(self) -> Nats {
        match self {
            Self::Plain => nats(NatsConfig::default().without_jetstream()).await,
            Self::Jetstream => nats(NatsConfig::default()).await,
        }
    }
}

/// An API server that knows PhaseManifests, with an etcd that writes to its disk as one in production does.
pub async fn cluster() -> Cluster {
    crate::support::keep_on_disk();
    let cluster = crate::support::cluster().await;
    apply(&cluster, &["apply", "--server-side", "--force-conflicts", "-f", CRD]).await;
    let name = "crd/phasemanifests.pmp.dev";
    apply(&cluster, &["wait", "--for=condition=Established", "--timeout=60s", name]).await;
    cluster
}

/// Runs kubectl, which must succeed.
pub async fn apply(cluster: &Cluster, arguments: &[&str]) {
    let ran = cluster.kubectl(arguments).await;
    assert!(ran.status.success(), "kubectl {arguments:?}: {ran:?}");
}

/// The account under which controllers run: an ordinary one that may do everything, so that every request of ours and of
/// our peers is authenticated and authorised in the same way.
pub async fn account(cluster: &Cluster, namespace: &str, name: &str) -> std::path::PathBuf {
    let kubeconfig = cluster.service_account_kubeconfig(namespace, name).await;
    let account = format!("--serviceaccount={namespace}:{name}");
    let binding = format!("{namespace}-{name}");
    let ran =
        cluster.kubectl(&["create", "clusterrolebinding", &binding, "--clusterrole=cluster-admin", &account]).await;
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() || said.contains("already exists"), "{said}");
    kubeconfig
}

/// The operator's process, in one namespace.
pub struct Operator {
    pub process: Process,
    pub prefix: Prefix,
}

impl Operator {
    /// Starts it and returns when its caches are filled.
    pub async fn start(cluster: &Cluster, namespace: &str, nats: &Nats) -> Self {
        let kubeconfig = account(cluster, namespace, "operator").await;
        let prefix = Prefix::new(&unique("bench")).expect("the name is a token");
        let mut command = Command::new(bin());
        command.args(["operator", "--health-addr", "127.0.0.1:0", "--namespace", namespace]);
        command.args(["--nats", &nats.url, "--subject-prefix", prefix.as_str(), "--kubeconfig"]).arg(kubeconfig);
        if has_gateway() {
            command.args(["--gateway-addr", "127.0.0.1:0"]);
        }
        let mut process = Process::start("operator", &command);
        eventually(SOON, "the operator is ready", async || {
            assert!(process.exit_code().is_none(), "ended at its start: {}", process.tail());
            is_ready(&process.stderr()).await.then_some(())
        })
        .await;
        Self { process, prefix }
    }
}

/// Asks `/readyz` at the address that the log names.
async fn is_ready(log: &str) -> bool {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let Some(address) = address_in(log, "health") else { return false };
    let Ok(mut stream) = tokio::net::TcpStream::connect(&address).await else { return false };
    let question = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    stream.write_all(question.as_bytes()).await.is_ok()
        && stream.read_to_string(&mut answer).await.is_ok()
        && answer.starts_with("HTTP/1.1 200")
}

/// The loopback address in the first line of a log that holds this word.
pub fn address_in(log: &str, word: &str) -> Option<String> {
    const HOST: &str = "127.0.0.1:";
    log.lines().filter(|line| line.contains(word)).find_map(|line| {
        let (_, port) = line.split_once(HOST)?;
        let digits = port.find(|c: char| !c.is_ascii_digit()).unwrap_or(port.len());
        Some(format!("{HOST}{}", &port[..digits]))
    })
}

/// Whether this build serves manifests over HTTP.
pub fn has_gateway() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let help = Command::new(bin()).args(["operator", "--help"]).output().expect("the binary was built");
        String::from_utf8_lossy(&help.stdout).contains("--gateway-addr")
    })
}

/// When each phase was begun, by session.
pub type Begun = Arc<Mutex<BTreeMap<String, Vec<Instant>>>>;

/// A runtime that has done the work as soon as it may begin, or after a pause.
struct Nothing {
    pause: Duration,
    begun: Begun,
}

impl Work for Nothing {
    fn kind(&self) -> std::borrow::Cow<'static, str> {
        "nothing".into()
    }

    fn judge(&self, _: &Job) -> Result<(), Decline> {
        Ok(())
    }

    async fn run(&self, job: &Job, _: &Handle) -> Outcome {
        let now = Instant::now();
        {
            let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
            begun.entry(job.session.as_str().to_owned()).or_default().push(now);
        }
        if !self.pause.is_zero() {
            tokio::time::sleep(self.pause).await;
        }
        Outcome::Complete { message: String::new() }
    }
}

/// Starts the runtime on a connection of its own.
pub async fn runtime(nats: &Nats, prefix: &Prefix, pause: Duration) -> (Runtime, Begun) {
    let bus = Bus::connect(ConnectOptions::new([&nats.url])).await.expect("the address is complete");
    let mut link = bus.link();
    let connected = link.wait_for(|link| link.state == pmp::bus::LinkState::Connected);
    tokio::time::timeout(SOON, connected).await.expect("NATS answers in time").expect("the connection is kept");
    let begun = Begun::default();
    let options = runtime::Options {
        name: unique("runtime"),
        labels: Labels::Everything,
        prefix: prefix.clone(),
        session: None,
        concurrency: None,
        heartbeat: runtime::Options::HEARTBEAT,
    };
    let work = Nothing { pause, begun: Arc::clone(&begun) };
    let runtime = runtime::start(bus, options, work).await.expect("the bus takes subscriptions");
    (runtime, begun)
}
