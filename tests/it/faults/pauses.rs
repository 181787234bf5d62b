//! Processes that hang for 20 s in mid-run, as on a machine that swaps or is moved: they say nothing, keep their
//! connections, and go on afterwards as if nothing had been.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    figures::Figures,
    scene::{Bus, PHASES, Scene},
};
use crate::{
    resource::{cluster, teach},
    support::{Signal, eventually, own_cluster},
};

/// How long a process hangs, or a link is dead.
pub const PAUSE: Duration = Duration::from_secs(20);
/// For how much of it nothing can come forward, at least: work that had begun comes to its end.
pub const STILL: Duration = Duration::from_secs(15);

/// Runs 200 phases, and lets `signal` stop and continue something when a quarter of them have ended.
async fn run_with_a_pause(scene: &mut Scene, pace: Value, mut signal: impl FnMut(&mut Scene, Signal)) -> Figures {
    let began = Instant::now();
    scene.submit("boot", pace).await;
    scene.until_ended("boot", PHASES / 4).await;
    signal(scene, Signal::STOP);
    tokio::time::sleep(PAUSE).await;
    signal(scene, Signal::CONT);
    scene.succeeded("boot", 1, began).await
}

#[tokio::test]
async fn an_operator_that_hangs_with_jetstream_goes_on_where_it_was() {
    stop_the_operator(Bus::JetStream).await;
}

#[tokio::test]
async fn an_operator_that_hangs_without_jetstream_goes_on_where_it_was() {
    stop_the_operator(Bus::Plain).await;
}

async fn stop_the_operator(bus: Bus) {
    let server = bus.server().await;
    // It hears nothing of theirs for longer than three heartbeats, and must not take that for silence.
    let mut scene = Scene::with_talkative_runtimes("stop-operator", &cluster().await, &server).await;
    let mut operator = scene.operator();
    let figures = run_with_a_pause(&mut scene, json!({}), |_, signal| operator.signal(signal)).await;
    figures.stood_still(STILL).tell(&format!("SIGSTOP of the operator for 20 s, {bus}"));
}

#[tokio::test]
async fn a_nats_server_that_hangs_costs_time_and_nothing_else() {
    let server = Bus::JetStream.server().await;
    let mut scene = Scene::set("stop-nats", &cluster().await, &server).await;
    let _operator = scene.operator();
    let figures = run_with_a_pause(&mut scene, json!({}), |_, signal| server.signal(signal)).await;
    figures.stood_still(STILL).tell("SIGSTOP of nats-server for 20 s");
}

#[tokio::test]
async fn runtimes_that_all_hang_for_less_than_three_heartbeats_keep_their_attempts() {
    let server = Bus::JetStream.server().await;
    let mut scene = Scene::set("stop-runtimes", &cluster().await, &server).await;
    let _operator = scene.operator();
    let figures = run_with_a_pause(&mut scene, json!({}), |scene, signal| {
        scene.runtimes.iter_mut().for_each(|runtime| runtime.signal(signal));
    })
    .await;
    figures.stood_still(STILL).tell("SIGSTOP of all runtimes for 20 s");
}

/// The other one takes what it would have been offered; what it holds nobody else is given.
#[tokio::test]
async fn a_runtime_that_hangs_beside_another_keeps_its_attempts() {
    let server = Bus::JetStream.server().await;
    let mut scene = Scene::set("stop-runtime", &cluster().await, &server).await;
    let _operator = scene.operator();
    let began = Instant::now();
    scene.submit("boot", json!({})).await;
    scene.until_ended("boot", PHASES / 4).await;
    let stopped = scene.runtimes[0].pid();
    eventually(PAUSE, "it runs something", async || scene.ledger("boot").is_busy(stopped).then_some(())).await;
    scene.runtimes[0].signal(Signal::STOP);
    tokio::time::sleep(PAUSE).await;
    scene.runtimes[0].signal(Signal::CONT);
    scene.succeeded("boot", 1, began).await.tell("SIGSTOP of one runtime for 20 s");
}

/// So slow that the run is not over before the operator has gone 15 s without a stored write, and offers nothing more.
fn one_by_one() -> Value {
    json!({"parallelism": 1})
}

/// Phases go on meanwhile: what stands still is what is stored.
fn assert_nothing_was_stored(scene: &Scene) {
    let gap = scene.slow.longest_gap();
    assert!(gap > STILL, "the fault did not hit: a status was stored every {gap:?}");
}

#[tokio::test]
async fn an_api_server_that_hangs_costs_no_phase() {
    let cluster = own_cluster().await;
    teach(&cluster).await;
    let server = Bus::JetStream.server().await;
    let mut scene = Scene::set("stop-api", &cluster, &server).await;
    let _operator = scene.operator();
    let figures = run_with_a_pause(&mut scene, one_by_one(), |_, signal| cluster.signal_api_server(signal)).await;
    assert_nothing_was_stored(&scene);
    figures.tell("SIGSTOP of kube-apiserver for 20 s");
}

#[tokio::test]
async fn an_etcd_that_hangs_costs_no_phase() {
    let cluster = own_cluster().await;
    teach(&cluster).await;
    let server = Bus::JetStream.server().await;
    let mut scene = Scene::set("stop-etcd", &cluster, &server).await;
    let _operator = scene.operator();
    let figures = run_with_a_pause(&mut scene, one_by_one(), |_, signal| cluster.signal_etcd(signal)).await;
    assert_nothing_was_stored(&scene);
    figures.tell("SIGSTOP of etcd for 20 s");
}
