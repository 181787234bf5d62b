//! Processes that hang for 20 s in mid-run, as on a machine that swaps or is moved: they say nothing, keep their
//! connections, and go on afterwards as if nothing had been.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::scene::{Bus, PHASES, Scene};
use crate::{
    resource::{cluster, teach},
    support::{Signal, own_cluster},
};

/// How long a process hangs, or a link is dead.
pub const PAUSE: Duration = Duration::from_secs(20);

/// Runs 200 phases, and lets `signal` stop and continue something when a quarter of them have ended.
async fn run_with_a_pause(scene: &mut Scene, fault: &str, signal: impl FnMut(&mut Scene, Signal)) {
    run_paced_with_a_pause(scene, fault, json!({}), signal).await;
}

async fn run_paced_with_a_pause(
    scene: &mut Scene,
    fault: &str,
    pace: Value,
    mut signal: impl FnMut(&mut Scene, Signal),
) {
    let began = Instant::now();
    scene.submit("boot", pace).await;
    scene.until_ended("boot", PHASES / 4).await;
    signal(scene, Signal::STOP);
    tokio::time::sleep(PAUSE).await;
    signal(scene, Signal::CONT);
    scene.succeeded("boot", 1, began).await.tell(fault);
}

#[tokio::test]
async fn an_operator_that_hangs_goes_on_where_it_was() {
    let server = Bus::JetStream.server().await;
    let mut scene = Scene::set("stop-operator", &cluster().await, &server).await;
    let mut operator = scene.bed.operator();
    run_with_a_pause(&mut scene, "SIGSTOP of the operator for 20 s", |_, signal| operator.signal(signal)).await;
}

#[tokio::test]
async fn a_nats_server_that_hangs_costs_time_and_nothing_else() {
    let server = Bus::JetStream.server().await;
    let mut scene = Scene::set("stop-nats", &cluster().await, &server).await;
    let _operator = scene.bed.operator();
    run_with_a_pause(&mut scene, "SIGSTOP of nats-server for 20 s", |_, signal| server.signal(signal)).await;
}

#[tokio::test]
async fn a_runtime_that_hangs_for_less_than_three_heartbeats_keeps_its_attempts() {
    let server = Bus::JetStream.server().await;
    let mut scene = Scene::set("stop-runtime", &cluster().await, &server).await;
    let _operator = scene.bed.operator();
    let fault = "SIGSTOP of a runtime for 20 s";
    run_with_a_pause(&mut scene, fault, |scene, signal| scene.runtimes[0].signal(signal)).await;
}

/// So slow that the run is not over before the operator has gone 15 s without a stored write, and offers nothing more.
fn one_by_one() -> Value {
    json!({"parallelism": 1})
}

#[tokio::test]
async fn an_api_server_that_hangs_costs_no_phase() {
    let cluster = own_cluster().await;
    teach(&cluster).await;
    let server = Bus::JetStream.server().await;
    let mut scene = Scene::set("stop-api", &cluster, &server).await;
    let _operator = scene.bed.operator();
    let fault = "SIGSTOP of kube-apiserver for 20 s";
    run_paced_with_a_pause(&mut scene, fault, one_by_one(), |_, signal| cluster.signal_api_server(signal)).await;
}

#[tokio::test]
async fn an_etcd_that_hangs_costs_no_phase() {
    let cluster = own_cluster().await;
    teach(&cluster).await;
    let server = Bus::JetStream.server().await;
    let mut scene = Scene::set("stop-etcd", &cluster, &server).await;
    let _operator = scene.bed.operator();
    let fault = "SIGSTOP of etcd for 20 s";
    run_paced_with_a_pause(&mut scene, fault, one_by_one(), |_, signal| cluster.signal_etcd(signal)).await;
}
