//! A dead link: bytes are swallowed, and both ends believe in it.

use std::time::Instant;

use serde_json::json;

use super::{
    pauses::{PAUSE, STILL},
    scene::{Bus, PHASES, Scene},
};
use crate::{resource::cluster, support::Passage};

#[tokio::test]
async fn a_dead_link_between_operator_and_nats_with_jetstream_costs_time_and_nothing_else() {
    cut_off_the_operator(Bus::JetStream).await;
}

#[tokio::test]
async fn a_dead_link_between_operator_and_nats_without_jetstream_costs_time_and_nothing_else() {
    cut_off_the_operator(Bus::Plain).await;
}

async fn cut_off_the_operator(bus: Bus) {
    let server = bus.server().await;
    let mut scene = Scene::set("black-hole", &cluster().await, &server).await;
    let passage = Passage::to(server.address()).await;
    // The runtimes are there already, on the short way.
    scene.bed.nats_url = format!("nats://{}", passage.address);
    let _operator = scene.operator();
    let began = Instant::now();
    scene.submit("boot", json!({})).await;
    scene.until_ended("boot", PHASES / 4).await;
    passage.swallow();
    tokio::time::sleep(PAUSE).await;
    passage.open();
    let figures = scene.succeeded("boot", 1, began).await.stood_still(STILL);
    figures.tell(&format!("black hole before NATS for 20 s, {bus}"));
}
