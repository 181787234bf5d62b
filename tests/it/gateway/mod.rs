//! The HTTP endpoints on real servers: a gateway in the operator's process, or one of its own, asked over raw sockets.

mod alone;
mod answers;
mod bad;
mod client;
mod guide;
mod limits;
mod logs;
mod once;
mod reading;
mod schema;
mod steering;
mod streams;
mod submit;

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use kube::Api;
use pmp::resource::PhaseManifest;
use serde_json::{Value, json};

use self::client::{Answer, Call};
use crate::support::{Cluster, Process, bin, eventually, python, scratch, shared_nats, unique};

/// For what takes a few round trips on a machine that is busy with other tests.
const SOON: Duration = Duration::from_mins(1);

/// An operator with its gateway, for a namespace and a subject prefix of the test's own.
pub struct Front {
    pub kubeconfig: PathBuf,
    pub namespace: String,
    pub prefix: String,
    pub nats_url: String,
    pub address: SocketAddr,
    pub operator: Process,
    pub api: Api<PhaseManifest>,
    pub dir: PathBuf,
}

impl Front {
    pub async fn new(name: &str) -> Self {
        Self::with(name, &[]).await
    }

    /// With more arguments.
    pub async fn with(name: &str, arguments: &[&str]) -> Self {
        let cluster = super::resource::cluster().await;
        let nats_url = shared_nats().await.url.clone();
        Self::on(&cluster, &nats_url, name, arguments).await
    }

    /// On these servers.
    pub async fn on(cluster: &Cluster, nats_url: &str, name: &str, arguments: &[&str]) -> Self {
        let namespace = cluster.namespace(name).await;
        let prefix = unique(&format!("gateway.{name}"));
        let mut command = Command::new(bin());
        command.args(["operator", "--health-addr", "127.0.0.1:0", "--gateway-addr", "127.0.0.1:0"]);
        command.args(["--namespace", &namespace, "--nats", nats_url, "--subject-prefix", &prefix]);
        command.arg("--kubeconfig").arg(&cluster.kubeconfig).args(arguments);
        let operator = Process::start("operator", &command);
        let address = address(&operator).await;
        let api = Api::namespaced(kube::Client::clone(&cluster.client), &namespace);
        let front = Self {
            kubeconfig: cluster.kubeconfig.clone(),
            namespace,
            prefix,
            nats_url: nats_url.to_owned(),
            address,
            operator,
            api,
            dir: scratch(name),
        };
        eventually(SOON, "the gateway is ready", async || {
            (Call::new(front.address, "GET", "/ready").try_send().await?.code == 200).then_some(())
        })
        .await;
        front
    }

    pub fn call(&self, method: &str, target: &str) -> Call {
        Call::new(self.address, method, target)
    }

    pub async fn get(&self, target: &str) -> Answer {
        self.call("GET", target).send().await
    }

    /// POST without a body.
    pub async fn post(&self, target: &str) -> Answer {
        self.call("POST", target).send().await
    }

    /// POST /plan?session=... of these phases.
    pub async fn submit(&self, session: &str, phases: &Value) -> Answer {
        self.call("POST", &format!("/plan?session={session}")).json(phases).send().await
    }

    /// A copy of the Python runtime that takes everything, as soon as it listens.
    pub async fn runtime(&self, name: &str) -> Process {
        let mut command = Command::new(python());
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/runtime.py"));
        command.args(["--nats", &self.nats_url, "--prefix", &self.prefix, "--name", name, "--allow-exec"]);
        let runtime = Process::start(name, &command);
        eventually(SOON, "the runtime listens", async || runtime.stderr().contains("waits for phases").then_some(()))
            .await;
        runtime
    }

    /// GET /status once this is so.
    pub async fn until(&self, session: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let target = format!("/status?session={session}");
        let mut last = Value::Null;
        let began = Instant::now();
        while began.elapsed() < SOON {
            if let Some(answer) = self.call("GET", &target).try_send().await.filter(|answer| answer.code == 200) {
                last = answer.json();
                if is_so(&last) {
                    return last;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not within {SOON:?}: {what}; last {last:#}");
    }

    pub async fn until_state(&self, session: &str, state: &str) -> Value {
        self.until(session, &format!("{session} is {state}"), |status| status["state"] == state).await
    }

    /// The only resource of the namespace.
    pub async fn only(&self) -> PhaseManifest {
        let mut all = self.all().await;
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    pub async fn all(&self) -> Vec<PhaseManifest> {
        self.api.list(&kube::api::ListParams::default()).await.unwrap().items
    }

    /// A phase that runs until [`Self::open`] is called for it.
    pub fn gated(&self, id: &str, waits: &[&str]) -> Value {
        let gate = self.dir.join(id);
        let line = format!("until [ -e '{}' ]; do kill -0 $PPID || exit 1; sleep 0.05; done", gate.display());
        shell(id, waits, &line)
    }

    pub fn open(&self, id: &str) {
        std::fs::write(self.dir.join(id), "").unwrap();
    }
}

/// Where the process says that its gateway answers.
pub async fn address(process: &Process) -> SocketAddr {
    eventually(SOON, "the gateway says where it is", async || {
        let log = process.stderr();
        let line = log.lines().find(|line| line.contains("the gateway answers"))?;
        let port: u16 = line.split("127.0.0.1:").nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
        Some(SocketAddr::from(([127, 0, 0, 1], port)))
    })
    .await
}

/// A phase of which nothing is known but its waits.
pub fn phase(id: &str, waits: &[&str]) -> Value {
    json!({"kind": "Phase", "id": id, "spec": {"waitFor": {"phases": waits}}})
}

/// A phase that runs a line of shell.
pub fn shell(id: &str, waits: &[&str], line: &str) -> Value {
    json!({"kind": "Phase", "id": id, "spec": {
        "waitFor": {"phases": waits},
        "x-exec": {"command": ["sh", "-c", line]},
    }})
}

/// The row of a phase in GET /status; null before its revision has begun.
pub fn row<'a>(state: &'a Value, id: &str) -> &'a Value {
    let mut rows = state["phases"].as_array().expect("there are rows").iter();
    rows.find(|row| row["id"] == id).unwrap_or(&Value::Null)
}
