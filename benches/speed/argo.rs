//! Argo Workflows' own controller beside ours, on the same API server, doing the same: steps that somebody outside
//! reports as done, a little after they were begun.
//!
//! A step is a `suspend` node; the runtime here marks it as Succeeded by one patch for all nodes of a workflow that run
//! at that moment, which is kind to Argo. It needs a pause before it reports: without one, 4 of 17 chains of 50 were
//! never finished by v3.7.14 (docs/speed.md).

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    core::{ApiResource, DynamicObject, GroupVersionKind, Object},
    runtime::watcher::{self, watcher},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinHandle};

use crate::{
    bed::{account, apply},
    load::{Load, Shape, Step},
    meter,
    run::{Figures, Hop, Ignored, Job, Seen, run},
    support::{Cluster, Process, eventually, scratch},
};

const NAMESPACE: &str = "argo";
const SOON: Duration = Duration::from_mins(1);
/// Clients that patch at the same time.
const PATCHERS: usize = 8;
/// What Argo's own documents suggest for many workflows, and no Events of nodes. With the defaults it is slower.
const TUNED: [&str; 8] = ["--qps", "500", "--burst", "1000", "--workflow-workers", "64", "--pod-cleanup-workers", "16"];

/// Argo, ready to be started.
pub struct Argo {
    binary: PathBuf,
    kubeconfig: PathBuf,
    pub version: String,
}

impl Argo {
    /// Sets it up on the cluster; says why where it cannot take part.
    pub async fn set_up(cluster: &Cluster) -> Result<Self, String> {
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/testbed/peers");
        let binary = place.join("workflow-controller");
        if !binary.exists() {
            return Err("it is not built: run `make bench-peers`".to_owned());
        }
        if !meter::is_alone() {
            // Its health port is fixed and listens on all addresses.
            return Err("this is no network of its own: run `make bench` where unshare works".to_owned());
        }
        let manifests = place.join("manifests");
        let manifests = manifests.to_str().expect("the checkout's path is UTF-8");
        let crds = [
            "workflows",
            "workflowtaskresults",
            "workflowtasksets",
            "workflowtemplates",
            "clusterworkflowtemplates",
            "cronworkflows",
            "workflowartifactgctasks",
            "workfloweventbindings",
        ];
        for crd in crds {
            apply(cluster, &["apply", "--server-side", "-f", &format!("{manifests}/argoproj.io_{crd}.yaml")]).await;
            let name = format!("crd/{crd}.argoproj.io");
            apply(cluster, &["wait", "--for=condition=Established", "--timeout=60s", &name]).await;
        }
        apply(cluster, &["create", "namespace", NAMESPACE]).await;
        let config =
            "config=nodeEvents: {enabled: false}\nmetricsConfig: {enabled: false}\ntelemetryConfig: {enabled: false}\n";
        let literal = format!("--from-literal={config}");
        apply(cluster, &["create", "configmap", "workflow-controller-configmap", "-n", NAMESPACE, &literal]).await;
        let kubeconfig = account(cluster, NAMESPACE, "argo").await;
        let version = fs::read_to_string(place.join("version")).unwrap_or_default().trim().to_owned();
        Ok(Self { binary, kubeconfig, version })
    }

    async fn start(&self) -> Process {
        let mut command = Command::new(&self.binary);
        command.args(["--executor-image", "bench.local/argoexec:1", "--loglevel", "info"]).args(TUNED);
        command.current_dir(scratch("argo")).env("KUBECONFIG", &self.kubeconfig);
        command.env("LEADER_ELECTION_DISABLE", "true").env("DEFAULT_REQUEUE_TIME", "1s");
        let mut process = Process::start("workflow-controller", &command);
        eventually(SOON, "Argo's controller has started", async || {
            assert!(process.exit_code().is_none(), "ended at its start: {}", process.tail());
            let said = process.stderr() + &process.stdout();
            said.contains("Starting Workflow Controller").then_some(())
        })
        .await;
        process
    }

    /// Runs one workload once, under a fresh controller.
    pub async fn measure(&self, cluster: &Cluster, load: &Load, pause: Duration) -> Figures {
        let namespace = cluster.namespace("bench-argo").await;
        let controller = self.start().await;
        let begun = Begun::default();
        let runtime = Outside::start(cluster.client.clone(), &namespace, pause, Arc::clone(&begun));
        let job = |objects| Job {
            client: &cluster.client,
            namespace: &namespace,
            resource: workflows(),
            objects,
            judge,
            controller: controller.pid(),
        };
        // Also proves that its caches are filled.
        let warm_up = Load { name: "warm-up", manifests: 1, shape: Shape::Chain(3) };
        let warm = Box::pin(run(job(objects(&warm_up)))).await;
        if !warm.ok {
            eprintln!("three steps were not run by Argo: {}", controller.tail());
        }
        begun.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut figures = Box::pin(run(job(objects(load)))).await;
        if let (Shape::Chain(_), 1) = (load.shape, load.manifests) {
            figures.hop = Some(Hop::of(&begun.lock().unwrap_or_else(PoisonError::into_inner), None));
        }
        drop(runtime);
        figures
    }
}

fn workflows() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("argoproj.io", "v1alpha1", "Workflow"), "workflows")
}

fn judge(object: &Seen) -> Option<bool> {
    let is_done = object.labels().get("workflows.argoproj.io/completed").is_some_and(|text| text == "true");
    let phase = object.status.as_ref().and_then(|status| status.phase.as_deref());
    is_done.then_some(phase == Some("Succeeded"))
}

fn objects(load: &Load) -> Vec<Value> {
    let task = |Step { id, waits }: &Step| {
        let mut task = json!({"name": id, "template": "step"});
        if !waits.is_empty() {
            task["dependencies"] = json!(waits);
        }
        task
    };
    let object = |index: usize| {
        let tasks: Value = load.shape.steps(7 + index as u64).iter().map(task).collect();
        json!({
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {"name": format!("{}-{index:03}", load.name)},
            "spec": {"entrypoint": "main", "templates": [
                {"name": "main", "dag": {"tasks": tasks}},
                {"name": "step", "suspend": {}},
            ]},
        })
    };
    (0..load.manifests).map(object).collect()
}

/// When each step was first seen to run.
type Begun = Arc<Mutex<Vec<Instant>>>;

/// A workflow, as far as whoever does its steps looks at it.
type Steps = Object<Ignored, StepsStatus>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct StepsStatus {
    nodes: BTreeMap<String, Node>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Node {
    #[serde(rename = "type")]
    kind: String,
    phase: String,
}

/// Whoever does the steps, outside of Argo. Dropping it ends it.
struct Outside(JoinHandle<()>);

impl Drop for Outside {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Outside {
    fn start(client: Client, namespace: &str, pause: Duration, begun: Begun) -> Self {
        let steps: Api<Steps> = Api::namespaced_with(client.clone(), namespace, &workflows());
        let patched: Api<DynamicObject> = Api::namespaced_with(client, namespace, &workflows());
        Self(tokio::spawn(do_steps(steps, patched, pause, begun)))
    }
}

async fn do_steps(steps: Api<Steps>, patched: Api<DynamicObject>, pause: Duration, begun: Begun) {
    let patchers = Arc::new(Semaphore::new(PATCHERS));
    let mut known: HashSet<(String, String)> = HashSet::new();
    let mut events = std::pin::pin!(watcher(steps, watcher::Config::default()));
    while let Some(event) = events.next().await {
        let Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) = event else { continue };
        let now = Instant::now();
        let (uid, name) = (object.uid().unwrap_or_default(), object.name_any());
        let nodes = object.status.into_iter().flat_map(|status| status.nodes);
        let fresh: Vec<String> = nodes
            .filter(|(id, node)| {
                node.kind == "Suspend" && node.phase == "Running" && known.insert((uid.clone(), id.clone()))
            })
            .map(|(id, _)| id)
            .collect();
        if fresh.is_empty() {
            continue;
        }
        begun.lock().unwrap_or_else(PoisonError::into_inner).extend(fresh.iter().map(|_| now));
        let (api, patchers) = (patched.clone(), Arc::clone(&patchers));
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let _turn = patchers.acquire().await.expect("the semaphore is never closed");
            let done = |id: String| {
                let at = jiff::Timestamp::now().to_string();
                (id, json!({"phase": "Succeeded", "finishedAt": format!("{}Z", &at[..19]), "message": "done outside"}))
            };
            let nodes: serde_json::Map<String, Value> = fresh.into_iter().map(done).collect();
            let patch = Patch::Merge(json!({"status": {"nodes": nodes}}));
            if let Err(error) = api.patch(&name, &PatchParams::default(), &patch).await {
                eprintln!("a step of {name} was not marked as done: {error}");
            }
        });
    }
}
