//! Our own operator under the workloads.

use std::{sync::PoisonError, time::Duration};

use kube::core::ApiResource;
use pmp::resource::PhaseManifest;
use serde_json::{Value, json};

use crate::{
    bed::{self, BusMode, Operator},
    floor::{Floor, reply_through_stream, request_reply},
    load::{Load, Shape, phases},
    run::{Figures, Hop, Job, Seen, run},
    support::{Cluster, Nats},
};

/// Round trips behind one floor.
const FLOOR_ROUNDS: usize = 1_000;

/// Runs one workload once, under a fresh operator and a fresh runtime.
pub async fn measure(cluster: &Cluster, nats: &Nats, mode: BusMode, load: &Load, pause: Duration) -> Figures {
    let namespace = cluster.namespace("bench").await;
    let operator = Operator::start(cluster, &namespace, nats).await;
    let (runtime, begun) = bed::runtime(nats, &operator.prefix, pause).await;
    let job = |objects| Job {
        client: &cluster.client,
        namespace: &namespace,
        resource: ApiResource::erase::<PhaseManifest>(&()),
        objects,
        judge,
        controller: operator.process.pid(),
    };
    let warm_up = Load { name: "warm-up", manifests: 1, shape: Shape::Chain(3) };
    let warm = Box::pin(run(job(objects(&warm_up)))).await;
    assert!(warm.ok, "three phases were not run: {}", operator.process.tail());
    let floor = match (mode, load.shape) {
        // Beside work that takes its time the floor says nothing.
        _ if load.manifests > 1 || !pause.is_zero() => None,
        (BusMode::Plain, Shape::Chain(_)) => Some(request_reply(&nats.url, FLOOR_ROUNDS).await),
        (BusMode::Jetstream, Shape::Chain(_)) => Some(reply_through_stream(&nats.url, FLOOR_ROUNDS).await),
        _ => None,
    };
    let mut figures = Box::pin(run(job(objects(load)))).await;
    if !figures.ok {
        eprintln!("{} did not end well under the operator: {}", load.name, operator.process.tail());
    }
    figures.hop = hop(load, &namespace, &begun, floor);
    runtime.drain(Duration::from_secs(1)).await;
    figures
}

fn hop(load: &Load, namespace: &str, begun: &bed::Begun, floor: Option<Floor>) -> Option<Hop> {
    let (Shape::Chain(_), 1) = (load.shape, load.manifests) else { return None };
    let begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
    let session = pmp::protocol::SessionId::default_for(namespace, &name(load, 0));
    begun.get(session.as_str()).map(|begun| Hop::of(begun, floor))
}

fn name(load: &Load, index: usize) -> String {
    format!("{}-{index:03}", load.name)
}

pub fn objects(load: &Load) -> Vec<Value> {
    let object = |index: usize| {
        let steps = load.shape.steps(7 + index as u64);
        json!({
            "apiVersion": "pmp.dev/v1alpha1",
            "kind": "PhaseManifest",
            "metadata": {"name": name(load, index)},
            "spec": {"phases": phases(&steps)},
        })
    };
    (0..load.manifests).map(object).collect()
}

fn judge(object: &Seen) -> Option<bool> {
    let is = |name: &str| {
        let conditions = object.status.iter().flat_map(|status| &status.conditions);
        conditions.into_iter().any(|condition| condition.name == name && condition.status == "True")
    };
    is("Completed").then(|| is("Succeeded"))
}
