//! Processes that die without a word, twenty times in a run or in several, and are started again.

use std::time::Instant;

use serde_json::json;

use super::{
    figures::Figures,
    scene::{Bus, KILLS, LONG, PHASES, Scene, moments},
};
use crate::{
    resource::{cluster, teach},
    support::{Nats, Signal, own_cluster},
};

#[tokio::test]
async fn an_operator_killed_twenty_times_in_a_run_with_jetstream_runs_every_phase_once() {
    kill_the_operator(Bus::JetStream).await;
}

#[tokio::test]
async fn an_operator_killed_twenty_times_in_a_run_without_jetstream_runs_every_phase_once() {
    kill_the_operator(Bus::Plain).await;
}

/// With JetStream something is asked for while the operator is dead, each time, which only the stream hears: what runtimes
/// say they say again when they are asked, a client does not.
async fn kill_the_operator(bus: Bus) {
    let server = bus.server().await;
    let mut scene = Scene::set("kill-operator", &cluster().await, &server).await;
    scene.spares = if bus == Bus::JetStream { KILLS } else { 0 };
    let mut operator = scene.operator();
    let began = Instant::now();
    scene.submit("boot", json!({})).await;
    for (kill, moment) in moments().enumerate() {
        scene.until_ended("boot", moment).await;
        operator.signal(Signal::KILL);
        operator.wait(LONG).await;
        if kill < scene.spares {
            scene.use_spare("boot", kill).await;
        }
        operator = scene.operator();
    }
    scene.succeeded("boot", KILLS, began).await.tell(&format!("kill -9 of the operator, {bus}"));
}

#[tokio::test]
async fn a_nats_server_killed_twenty_times_in_a_run_with_jetstream_costs_time_and_nothing_else() {
    kill_nats("kill -9 of nats-server, with JetStream", Bus::JetStream, |_| ()).await;
}

#[tokio::test]
async fn a_nats_server_killed_twenty_times_in_a_run_without_jetstream_costs_time_and_nothing_else() {
    kill_nats("kill -9 of nats-server, without JetStream", Bus::Plain, |_| ()).await;
}

#[tokio::test]
async fn a_nats_server_that_loses_its_store_twenty_times_in_a_run_costs_time_and_nothing_else() {
    kill_nats("kill -9 of nats-server and its store wiped", Bus::JetStream, Nats::wipe_store).await;
}

async fn kill_nats(fault: &str, bus: Bus, while_dead: impl Fn(&Nats)) {
    let server = bus.server().await;
    let scene = Scene::set("kill-nats", &cluster().await, &server).await;
    let _operator = scene.operator();
    let began = Instant::now();
    scene.submit("boot", json!({})).await;
    for moment in moments() {
        scene.until_ended("boot", moment).await;
        server.kill();
        while_dead(&server);
        server.start().await;
    }
    scene.succeeded("boot", KILLS, began).await.tell(fault);
}

#[tokio::test]
async fn a_runtime_killed_twenty_times_in_a_run_with_jetstream_takes_nothing_with_it_but_its_attempts() {
    kill_runtimes(Bus::JetStream).await;
}

#[tokio::test]
async fn a_runtime_killed_twenty_times_in_a_run_without_jetstream_takes_nothing_with_it_but_its_attempts() {
    kill_runtimes(Bus::Plain).await;
}

async fn kill_runtimes(bus: Bus) {
    let server = bus.server().await;
    let mut scene = Scene::with_mortal_runtimes("kill-runtime", &cluster().await, &server).await;
    let _operator = scene.operator();
    let began = Instant::now();
    scene.submit("boot", json!({})).await;
    for (kill, moment) in moments().enumerate() {
        scene.until_ended("boot", moment).await;
        scene.replace_runtime(kill % 2).await;
    }
    let figures = scene.succeeded("boot", KILLS, began).await;
    assert!(figures.executed > figures.phases, "the fault did not hit: {figures:?}");
    figures.tell(&format!("kill -9 of a runtime and all it runs, {bus}"));
}

#[tokio::test]
async fn an_api_server_killed_twenty_times_costs_no_phase() {
    let cluster = own_cluster().await;
    teach(&cluster).await;
    let server = Bus::JetStream.server().await;
    let scene = Scene::set("kill-api", &cluster, &server).await;
    let kill = async || {
        cluster.kill_api_server();
        cluster.start_api_server().await;
    };
    kill_over_several_runs(&scene, kill).await.tell("kill -9 of kube-apiserver");
}

#[tokio::test]
async fn an_etcd_killed_twenty_times_with_jetstream_costs_no_phase() {
    kill_etcd(Bus::JetStream).await;
}

#[tokio::test]
async fn an_etcd_killed_twenty_times_without_jetstream_costs_no_phase() {
    kill_etcd(Bus::Plain).await;
}

async fn kill_etcd(bus: Bus) {
    let cluster = own_cluster().await;
    teach(&cluster).await;
    let server = bus.server().await;
    let scene = Scene::set("kill-etcd", &cluster, &server).await;
    let kill = async || {
        cluster.kill_etcd();
        cluster.start_etcd().await;
    };
    kill_over_several_runs(&scene, kill).await.tell(&format!("kill -9 of etcd, {bus}"));
}

/// For servers that take seconds to come back: phases go on meanwhile, so that a run sees only a few of the kills. The
/// first of a run comes a little later in it than that of the run before, so that they are spread over the whole run.
async fn kill_over_several_runs(scene: &Scene, kill: impl AsyncFn()) -> Figures {
    const APART: usize = PHASES / KILLS;
    let _operator = scene.operator();
    let (mut killed, mut total) = (0, Figures::default());
    for run in 0.. {
        let name = format!("boot-{run}");
        let (began, before) = (Instant::now(), killed);
        scene.submit(&name, json!({"parallelism": 2})).await;
        let mut next = 1 + run * 3 % APART;
        while next < PHASES && killed < KILLS {
            scene.until_ended(&name, next).await;
            kill().await;
            killed += 1;
            next = scene.ledger(&name).ended() + APART;
        }
        total = total.and(scene.succeeded(&name, killed - before, began).await);
        if killed == KILLS {
            break;
        }
    }
    total
}
