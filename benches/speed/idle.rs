//! Resources that nobody touches: what ten thousand of them cost the operator in memory, and that they cost no CPU.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject},
};
use pmp::resource::PhaseManifest;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    bed::{self, Operator},
    load::{Load, Shape},
    meter::{cpu_of, memory_mib},
    ours,
    run::clear,
    support::{Cluster, Nats, eventually},
};

/// Clients that create objects at the same time.
const CREATORS: usize = 16;
/// What each resource holds.
const WORK: Load = Load { name: "idle", manifests: 1, shape: Shape::Chain(10) };
const SETTLE_MAX: Duration = Duration::from_mins(9);
/// CPU of an operator that has nothing left to do, as a part of one processor.
const SETTLED: f64 = 0.02;
/// Looks in a row, two seconds apart: Events are written one after the other, which takes little CPU and long.
const QUIET_LOOKS: u32 = 3;

/// What they are idle with.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rest {
    /// Their verdict has fallen.
    Finished,
    /// They are suspended, each with a session of its own.
    Suspended,
}

/// What was seen of the operator.
#[derive(Debug, Clone, Serialize)]
pub struct IdleRow {
    pub rest: Rest,
    pub resources: usize,
    /// From the operator's start until it has nothing left to do.
    pub settle_s: f64,
    /// Before there was any resource.
    pub empty_mib: f64,
    pub resident_mib: f64,
    pub peak_mib: f64,
    pub watched_s: f64,
    /// In that time.
    pub cpu_s: f64,
}

/// Makes the resources, starts an operator over them, waits until it is at rest, and watches it for a while.
pub async fn measure(cluster: &Cluster, nats: &Nats, rest: Rest, count: usize, watch: Duration) -> IdleRow {
    let namespace = cluster.namespace("bench-idle").await;
    let empty_mib = {
        let operator = Operator::start(cluster, &namespace, nats).await;
        memory_mib(operator.process.pid()).0
    };
    let model = match rest {
        Rest::Finished => Some(finished(cluster, nats, &namespace).await),
        Rest::Suspended => None,
    };
    let began = Instant::now();
    fill(&cluster.client, &namespace, count, model.as_ref()).await;
    eprintln!("made in {:.0} s", began.elapsed().as_secs_f64());
    let began = Instant::now();
    let operator = Operator::start(cluster, &namespace, nats).await;
    let pid = operator.process.pid();
    let mut last = (Instant::now(), cpu_of(pid).unwrap_or_default());
    let mut quiet = 0;
    eventually(SETTLE_MAX, "the operator has nothing left to do", async || {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = (Instant::now(), cpu_of(pid).expect("the operator runs"));
        let share = (now.1 - last.1) / (now.0 - last.0).as_secs_f64();
        last = now;
        quiet = if share < SETTLED { quiet + 1 } else { 0 };
        (quiet == QUIET_LOOKS).then_some(())
    })
    .await;
    let settle_s = began.elapsed().as_secs_f64();
    let (at, cpu) = (Instant::now(), cpu_of(pid).expect("the operator runs"));
    tokio::time::sleep(watch).await;
    let cpu_s = cpu_of(pid).expect("the operator runs") - cpu;
    let (resident_mib, peak_mib) = memory_mib(pid);
    let watched_s = at.elapsed().as_secs_f64();
    drop(operator);
    clear(&cluster.client, &namespace, &resource()).await;
    IdleRow { rest, resources: count, settle_s, empty_mib, resident_mib, peak_mib, watched_s, cpu_s }
}

fn resource() -> ApiResource {
    ApiResource::erase::<PhaseManifest>(&())
}

/// The status that the operator itself gives to such a resource: one is run, and the others are made like it.
async fn finished(cluster: &Cluster, nats: &Nats, namespace: &str) -> Value {
    let operator = Operator::start(cluster, namespace, nats).await;
    let (runtime, _) = bed::runtime(nats, &operator.prefix, Duration::ZERO).await;
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), namespace, &resource());
    let object: DynamicObject = serde_json::from_value(ours::objects(&WORK).remove(0)).expect("it is an object");
    let name = object.metadata.name.clone().expect("it has a name");
    api.create(&PostParams::default(), &object).await.expect("a new object is taken");
    let status = eventually(SETTLE_MAX, "ten phases are done", async || {
        let mut status = api.get(&name).await.ok()?.data["status"].take();
        (status["verdict"] == "Succeeded").then(|| status.take())
    })
    .await;
    runtime.drain(Duration::from_secs(1)).await;
    drop(operator);
    clear(&cluster.client, namespace, &resource()).await;
    status
}

async fn fill(client: &Client, namespace: &str, count: usize, model: Option<&Value>) {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource());
    let object = ours::objects(&WORK).remove(0);
    let made = stream::iter(0..count).map(|index| {
        let (api, name, mut object) = (&api, format!("idle-{index:05}"), object.clone());
        object["metadata"]["name"] = json!(name);
        if model.is_none() {
            object["spec"]["suspend"] = json!(true);
        }
        async move {
            let object: DynamicObject = serde_json::from_value(object).expect("it is an object");
            api.create(&PostParams::default(), &object).await.expect("a new object is taken");
            let Some(model) = model else { return };
            let mut status = model.clone();
            let session = pmp::protocol::SessionId::default_for(namespace, &name);
            status["sessionId"] = json!(session.as_str());
            let patch = Patch::Merge(json!({"status": status}));
            api.patch_status(&name, &PatchParams::default(), &patch).await.expect("a status is taken");
        }
    });
    made.buffer_unordered(CREATORS).collect::<Vec<()>>().await;
}
