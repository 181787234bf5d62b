//! A dead link: bytes are swallowed, and both ends believe in it.

use std::time::Instant;

use serde_json::json;

use super::{
    pauses::PAUSE,
    scene::{Bus, PHASES, Scene},
};
use crate::{resource::cluster, support::Passage};

#[tokio::test]
async fn a_dead_link_between_operator_and_nats_costs_time_and_nothing_else() {
    let server = Bus::JetStream.server().await;
    let mut scene = Scene::set("black-hole", &cluster().await, &server).await;
    let passage = Passage::to(server.address()).await;
    // The runtimes are there already, on the short way.
    scene.bed.nats_url = format!("nats://{}", passage.address);
    let _operator = scene.bed.operator();
    let began = Instant::now();
    scene.submit("boot", json!({})).await;
    scene.until_ended("boot", PHASES / 4).await;
    passage.swallow();
    tokio::time::sleep(PAUSE).await;
    passage.open();
    scene.succeeded("boot", 1, began).await.tell("black hole between operator and NATS for 20 s");
}
