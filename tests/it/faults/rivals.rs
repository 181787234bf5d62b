//! More than one operator on one cluster, each believing that it is alone.

use std::time::Instant;

use serde_json::json;

use super::scene::{Bus, PHASES, Scene};
use crate::resource::cluster;

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
