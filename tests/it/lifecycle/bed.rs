//! A test's own corner of the shared servers: a namespace, a subject prefix, a directory that phases write to.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command, time::Duration};

use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use pmp::resource::PhaseManifest;
use serde_json::{Value, json};

use crate::{
    resource,
    support::{self, Cluster, Process, bin, eventually, python, scratch, shared_nats, unique},
};

/// For anything that takes a few round trips on a machine that is busy with other tests.
pub const SOON: Duration = Duration::from_mins(1);

pub struct Bed {
    pub namespace: String,
    pub nats_url: String,
    pub prefix: String,
    pub kubeconfig: PathBuf,
    pub api: Api<PhaseManifest>,
    dir: PathBuf,
}

impl Bed {
    /// On the servers that all tests share.
    pub async fn new(name: &str) -> (Self, Cluster) {
        let cluster = resource::cluster().await;
        let bed = Self::on(&cluster, &shared_nats().await.url, name).await;
        (bed, cluster)
    }

    /// On these servers; the cluster knows the resource.
    pub async fn on(cluster: &Cluster, nats_url: &str, name: &str) -> Self {
        let namespace = cluster.namespace(name).await;
        Self {
            nats_url: nats_url.to_owned(),
            prefix: unique(&format!("lifecycle.{name}")),
            kubeconfig: cluster.kubeconfig.clone(),
            api: Api::namespaced(Client::clone(&cluster.client), &namespace),
            dir: scratch(name),
            namespace,
        }
    }

    /// An operator of this namespace alone.
    pub fn operator(&self) -> Process {
        self.operator_with(&["--namespace", &self.namespace])
    }

    /// An operator of the whole cluster: only on one of the test's own, since it would take over all others' sessions.
    pub fn operator_of_all(&self) -> Process {
        self.operator_with(&[])
    }

    fn operator_with(&self, scope: &[&str]) -> Process {
        let mut command = Command::new(bin());
        command.args(["operator", "--health-addr", "127.0.0.1:0"]).args(scope);
        command.args(["--nats", &self.nats_url, "--subject-prefix", &self.prefix, "--kubeconfig"]);
        command.arg(&self.kubeconfig);
        Process::start("operator", &command)
    }

    /// A copy of the Python runtime that takes everything, as soon as it listens.
    pub async fn runtime(&self, name: &str) -> Process {
        self.runtime_with(name, &[]).await
    }

    /// The same with more arguments; of two that say the same the later one holds.
    pub async fn runtime_with(&self, name: &str, arguments: &[&str]) -> Process {
        let mut command = Command::new(python());
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/runtime.py"));
        command.args(["--nats", &self.nats_url, "--prefix", &self.prefix, "--name", name, "--allow-exec"]);
        command.args(["--concurrency", "8"]).args(arguments);
        Self::listening(name, &command).await
    }

    /// A copy of `pmp runtime` that takes everything, as soon as it listens. Its name has something random behind it.
    pub async fn shipped_runtime(&self, name: &str) -> Process {
        self.shipped_runtime_with(name, &["--concurrency", "8"]).await
    }

    /// The same with other arguments.
    pub async fn shipped_runtime_with(&self, name: &str, arguments: &[&str]) -> Process {
        let mut command = Command::new(bin());
        command.args(["runtime", "--nats", &self.nats_url, "--subject-prefix", &self.prefix, "--name", name]);
        command.arg("--allow-exec").args(arguments);
        Self::listening(name, &command).await
    }

    async fn listening(name: &str, command: &Command) -> Process {
        let runtime = Process::start(name, command);
        eventually(SOON, "the runtime listens", async || runtime.stderr().contains("waits for phases").then_some(()))
            .await;
        runtime
    }

    pub async fn create(&self, name: &str, spec: Value) {
        let object = json!({
            "apiVersion": "pmp.dev/v1alpha1",
            "kind": "PhaseManifest",
            "metadata": {"name": name},
            "spec": spec,
        });
        self.api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    }

    /// A merge patch onto the spec.
    pub async fn edit(&self, name: &str, spec: Value) {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.api.patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    pub async fn status(&self, name: &str) -> Value {
        let object = self.api.get(name).await.unwrap();
        serde_json::to_value(object.status.unwrap_or_default()).unwrap()
    }

    /// The first status of which this is so.
    pub async fn until(&self, name: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let began = std::time::Instant::now();
        while began.elapsed() < SOON {
            // An API server that a test has stopped answers late or never.
            if let Ok(Ok(object)) = tokio::time::timeout(Duration::from_secs(5), self.api.get(name)).await {
                last = serde_json::to_value(object.status.unwrap_or_default()).unwrap();
                if is_so(&last) {
                    return last;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not within {SOON:?}: {what}; ran {:?}; last {last:#}", self.ran());
    }

    pub async fn until_state(&self, name: &str, state: &str) -> Value {
        self.until(name, state, |status| status["state"] == state).await
    }

    pub async fn until_phase(&self, name: &str, id: &str, state: &str) -> Value {
        self.until(name, &format!("{id} is {state}"), |status| phase_state(status, id) == state).await
    }

    /// In the test's directory.
    pub fn file(&self, name: &str) -> String {
        self.dir.join(name).to_str().expect("the scratch directory is text").to_owned()
    }

    /// A phase that runs a line of shell; `$DIR` is the test's directory.
    pub fn shell(&self, id: &str, waits: &[&str], line: &str) -> Value {
        json!({"kind": "Phase", "id": id, "spec": {
            "waitFor": waits,
            "x-exec": {"command": ["sh", "-c", line], "env": {"DIR": self.dir}},
        }})
    }

    /// A phase that works for so long and then says that it ran.
    pub fn work(&self, id: &str, waits: &[&str], seconds: &str) -> Value {
        self.shell(id, waits, &format!("sleep {seconds}; echo {id} >> $DIR/ran"))
    }

    /// A phase that says its process id and that it ran once [`Self::open`] was called for it. It fails when its runtime
    /// is gone: it has a process group of its own, and nobody would end it after a test that died.
    pub fn gated(&self, id: &str, waits: &[&str]) -> Value {
        let wait = format!("until [ -e $DIR/gate-{id} ]; do kill -0 $PPID || exit 1; sleep 0.05; done");
        self.shell(id, waits, &format!("echo $$ > $DIR/pid-{id}; {wait}; echo {id} >> $DIR/ran"))
    }

    pub fn open(&self, id: &str) {
        fs::write(self.file(&format!("gate-{id}")), "").unwrap();
    }

    /// Of a gated phase, once it runs.
    pub async fn pid(&self, id: &str) -> u32 {
        let file = self.file(&format!("pid-{id}"));
        eventually(SOON, "the phase runs", async || fs::read_to_string(&file).ok()?.trim().parse().ok()).await
    }

    pub async fn until_dead(&self, pid: u32) {
        eventually(SOON, "the child is stopped", async || (!support::alive(pid)).then_some(())).await;
    }

    /// How often each phase came to its end.
    pub fn ran(&self) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for id in self.order() {
            *counts.entry(id).or_default() += 1;
        }
        counts
    }

    /// Ids in the order in which phases ended.
    pub fn order(&self) -> Vec<String> {
        fs::read_to_string(self.file("ran")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    pub async fn until_ran(&self, count: usize) {
        let what = format!("{count} phases have run");
        eventually(SOON, &what, async || (self.order().len() >= count).then_some(())).await;
    }

    pub fn assert_each_ran_once(&self, phases: &Value) {
        let ids = phases.as_array().unwrap().iter().map(|phase| phase["id"].as_str().unwrap().to_owned());
        assert_eq!(self.ran(), ids.map(|id| (id, 1)).collect());
    }

    pub fn session(&self, name: &str) -> String {
        format!("{}_{name}", self.namespace)
    }

    pub fn subject(&self, name: &str, channel: &str) -> String {
        format!("{}.{}.{channel}", self.prefix, self.session(name))
    }

    pub async fn nats(&self) -> async_nats::Client {
        async_nats::connect(&self.nats_url).await.unwrap()
    }
}

/// Of a stored row; a phase without one has not been touched.
pub fn phase_state<'a>(status: &'a Value, id: &str) -> &'a str {
    let row = status["phases"].as_array().into_iter().flatten().find(|row| row["id"] == id);
    row.and_then(|row| row["state"].as_str()).unwrap_or("Waiting")
}

/// `status/reason` of a condition.
pub fn condition(status: &Value, kind: &str) -> String {
    let found = status["conditions"].as_array().into_iter().flatten().find(|condition| condition["type"] == kind);
    found.map_or_else(String::new, |condition| {
        format!("{}/{}", condition["status"].as_str().unwrap(), condition["reason"].as_str().unwrap())
    })
}
