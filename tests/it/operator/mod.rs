//! The whole product on real servers: kubectl on one side, peers on NATS on the other, the operator's own process
//! between them. Nothing here knows how the operator works; it sees what people and peers see.

mod boot;
mod edit;
mod manifests;
mod peers;
mod rights;
mod runtimes;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{self, Cluster, Process, bin, eventually, python, shared_nats, unique};

/// For what takes seconds on an idle machine.
const SOON: Duration = Duration::from_mins(1);

/// One operator for one namespace and one subject prefix.
struct Scene {
    cluster: Cluster,
    namespace: String,
    prefix: String,
    nats_url: String,
    /// Where phases leave their traces.
    dir: PathBuf,
    operator: Process,
}

/// What a test's runtime is told beside where its offers are.
#[derive(Default)]
struct Worker<'a> {
    arguments: &'a [&'a str],
    env: &'a [(&'a str, &'a str)],
}

impl Scene {
    async fn set(name: &str) -> Self {
        let cluster = super::resource::cluster().await;
        let namespace = cluster.namespace(name).await;
        let kubeconfig = cluster.kubeconfig.clone();
        Self::set_as(name, cluster, namespace, &kubeconfig).await
    }

    /// With an operator that reaches the API server by this kubeconfig.
    async fn set_as(name: &str, cluster: Cluster, namespace: String, kubeconfig: &Path) -> Self {
        let prefix = unique("e2e");
        let nats_url = shared_nats().await.url.clone();
        let mut command = Command::new(bin());
        command.args(["operator", "--health-addr", "127.0.0.1:0", "--namespace", &namespace]);
        command.args(["--nats", &nats_url, "--subject-prefix", &prefix, "--kubeconfig"]).arg(kubeconfig);
        let operator = Process::start("operator", &command);
        Self { cluster, namespace, prefix, nats_url, dir: support::scratch(name), operator }
    }

    /// `examples/runtime.py` under this name, waiting for offers.
    async fn runtime(&self, name: &str, worker: Worker<'_>) -> Process {
        let mut command = self.python(&examples("runtime.py"));
        command.args(["--name", name]).args(worker.arguments).envs(worker.env.iter().copied());
        self.waiting(name, &command).await
    }

    /// `pmp runtime`, called this and something random, waiting for offers.
    async fn shipped_runtime(&self, name: &str, worker: Worker<'_>) -> Process {
        let mut command = Command::new(bin());
        command.args(["runtime", "--nats", &self.nats_url, "--subject-prefix", &self.prefix, "--name", name]);
        command.args(worker.arguments).envs(worker.env.iter().copied());
        self.waiting(name, &command).await
    }

    async fn waiting(&self, name: &str, command: &Command) -> Process {
        let process = Process::start(name, command);
        eventually(SOON, "the runtime waits for phases", async || {
            process.stderr().contains("waits for phases").then_some(())
        })
        .await;
        process
    }

    /// A peer of `tests/peers`, listening.
    async fn peer(&self, name: &str) -> Process {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(name).with_extension("py");
        let process = Process::start(name, &self.python(&file));
        eventually(SOON, "the peer listens", async || process.stdout().contains("ready").then_some(())).await;
        process
    }

    fn python(&self, file: &Path) -> Command {
        let mut command = Command::new(python());
        command.arg(file).args(["--nats", &self.nats_url, "--prefix", &self.prefix]);
        command
    }

    /// What kubectl prints in the scene's namespace; fails the test with what it complains of.
    async fn kubectl(&self, arguments: &[&str]) -> String {
        let ran = self.cluster.kubectl(&[&["--namespace", &self.namespace], arguments].concat()).await;
        assert!(ran.status.success(), "kubectl {arguments:?}: {ran:?}\n{}", self.operator.tail());
        String::from_utf8(ran.stdout).expect("kubectl writes UTF-8")
    }

    /// `kubectl apply` of a PhaseManifest with this spec.
    async fn apply(&self, name: &str, spec: &Value) {
        let object = json!({
            "apiVersion": "pmp.dev/v1alpha1",
            "kind": "PhaseManifest",
            "metadata": {"name": name},
            "spec": spec,
        });
        let file = self.dir.join(format!("{name}.json"));
        fs::write(&file, object.to_string()).expect("the scratch directory is writable");
        self.kubectl(&["apply", "-f", path(&file)]).await;
    }

    /// `kubectl wait --for=<what>`, for as long as kubectl itself may take here.
    async fn wait(&self, name: &str, what: &str) {
        self.kubectl(&["wait", &format!("--for={what}"), "--timeout=50s", &format!("pm/{name}")]).await;
    }

    async fn get(&self, name: &str) -> Value {
        let json = self.kubectl(&["get", "pm", name, "--output", "json"]).await;
        serde_json::from_str(&json).expect("kubectl writes JSON")
    }

    /// Waits for the verdict and gives the status.
    async fn finished(&self, name: &str) -> Value {
        self.wait(name, "condition=Completed").await;
        self.get(name).await["status"].take()
    }

    /// Waits until the state of a revision, as kubectl shows it, is this.
    async fn until(&self, name: &str, revision: u64, state: &str) -> Value {
        let what = format!("revision {revision} of {name} is {state}");
        eventually(SOON, &what, async || {
            let status = self.get(name).await["status"].take();
            (status["revision"] == revision && status["state"] == state).then_some(status)
        })
        .await
    }

    /// The file that phases append to, as a command sees it.
    fn trace(&self) -> PathBuf {
        self.dir.join("trace")
    }

    /// What the phases appended, line by line.
    fn traces(&self) -> Vec<String> {
        let text = fs::read_to_string(self.trace()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// A phase that appends `<id> <USER of its runtime's environment>` to the trace, and then does this.
    fn tracing_phase(&self, id: &str, waits: &[String], then: &str) -> Value {
        let script = format!("echo \"{id} $USER\" >> '{}'; {then}", self.trace().display());
        json!({"kind": "Phase", "id": id, "spec": {
            "waitFor": {"phases": waits},
            "x-exec": {"command": ["sh", "-c", script]},
        }})
    }
}

fn examples(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the test's paths are UTF-8")
}

/// The row of a phase in a status.
fn row<'a>(status: &'a Value, id: &str) -> &'a Value {
    let rows = status["phases"].as_array().expect("the status has rows");
    rows.iter().find(|row| row["id"] == id).unwrap_or_else(|| panic!("no row of {id} in {status}"))
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let conditions = status["conditions"].as_array().expect("the status has conditions");
    conditions.iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

/// How often each phase ran, by the first word of each line.
fn times(traces: &[String]) -> BTreeMap<&str, usize> {
    let mut times = BTreeMap::new();
    for line in traces {
        *times.entry(line.split(' ').next().unwrap_or_default()).or_default() += 1;
    }
    times
}
