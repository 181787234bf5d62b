//! More than one operator on one cluster, each believing that it is alone.

use std::time::{Duration, Instant};

use serde_json::json;

use super::scene::{Bus, PHASES, Scene};
use crate::{resource::cluster, support::eventually};

#[tokio::test]
async fn operators_started_by_mistake_take_the_run_from_each_other_and_run_every_phase_once() {
    let server = Bus::JetStream.server().await;
    let scene = Scene::set("rivals", &cluster().await, &server).await;
    let _both = (scene.operator(), scene.operator());
    let began = Instant::now();
    scene.submit("boot", json!({})).await;
    let mut late = Vec::new();
    for quarter in 1..4 {
        scene.until_ended("boot", quarter * PHASES / 4).await;
        late.push(scene.operator());
    }
    scene.succeeded("boot", 1 + late.len(), began).await.tell("one more operator on the same cluster");
}

/// The one that lost the session looks after half a minute, and takes it back.
#[tokio::test]
async fn when_the_one_that_took_the_run_dies_the_one_that_lost_it_ends_it() {
    let server = Bus::Plain.server().await;
    let scene = Scene::set("rivals-one", &cluster().await, &server).await;
    let _first = scene.bed.operator();
    let began = Instant::now();
    scene.submit("boot", json!({})).await;
    scene.until_ended("boot", PHASES / 4).await;
    let holder = async || scene.state_of("boot").await.map(|status| status["holder"]["process"].clone());
    let before = holder().await;
    let mut second = scene.bed.operator();
    eventually(Duration::from_secs(30), "another operator holds boot", async || {
        (holder().await != before).then_some(())
    })
    .await;
    second.kill();
    scene.succeeded("boot", 1, began).await.tell("the operator that took the run over");
}

/// A phase of more than a minute writes nothing; whoever lost it asks meanwhile, and is answered.
#[tokio::test]
async fn of_two_that_live_the_one_that_lost_a_quiet_run_leaves_it_to_the_other() {
    let server = Bus::Plain.server().await;
    let scene = Scene::set("rivals-quiet", &cluster().await, &server).await;
    let first = scene.bed.operator();
    let long = scene.bed.shell("long", &[], "sleep 75");
    scene.bed.create("quiet", json!({"phases": [long], "timeouts": {"offer": "1s"}})).await;
    let holder = async || scene.bed.status("quiet").await["holder"].clone();
    let running = async || (scene.bed.status("quiet").await["state"] == "Running").then_some(());
    eventually(Duration::from_secs(30), "quiet runs", running).await;
    let before = holder().await["process"].clone();
    let second = scene.bed.operator();
    let taken = async || Some(holder().await["process"].clone()).filter(|process| *process != before);
    let process = eventually(Duration::from_secs(30), "the second operator holds quiet", taken).await;
    let answered = async || Some(holder().await).filter(|holder| holder["answered"].is_string());
    let holder = eventually(Duration::from_secs(90), "the holder was asked and has answered", answered).await;
    assert_eq!(holder["process"], process);
    let over = async || Some(scene.bed.status("quiet").await).filter(|status| status["verdict"] == "Succeeded");
    let status = eventually(Duration::from_mins(1), "quiet has its verdict", over).await;
    assert_eq!(status["holder"]["process"], process, "it was left to whoever had it");
    drop((first, second));
}
