//! Peers that know less than ours, or want less.

use futures::StreamExt as _;
use serde_json::{Value, json};

use super::{SOON, Scene, Worker, row, times};
use crate::support::shared_nats;

#[tokio::test]
async fn an_early_peer_that_never_acks_brings_a_manifest_to_its_end() {
    let scene = Scene::set("early").await;
    let _peer = scene.peer("early_peer").await;
    let phase = |id: &str, waits: &[&str]| json!({"kind": "Phase", "id": id, "spec": {"waitFor": waits}});
    // Written against the order in which they can run.
    let phases = json!([
        phase("last", &["left", "right"]),
        phase("right", &["first"]),
        phase("left", &["first"]),
        phase("first", &[]),
    ]);
    scene.apply("plan", &json!({"phases": phases})).await;
    let status = scene.finished("plan").await;
    assert_eq!((&status["state"], &status["progress"]), (&"Succeeded".into(), &"4/4".into()), "{status}");
    for id in ["first", "left", "right", "last"] {
        assert_eq!((&row(&status, id)["state"], &row(&status, id)["attempt"]), (&"Complete".into(), &1.into()));
    }
}

#[tokio::test]
async fn a_phase_that_one_runtime_declines_runs_once_on_another() {
    let scene = Scene::set("declined").await;
    let client = shared_nats().await.connect(async_nats::ConnectOptions::new()).await.expect("the server is open");
    let mut acks = client.subscribe(format!("{}.*.ack", scene.prefix)).await.expect("everyone may listen");
    client.flush().await.expect("the server answers");
    // Two label sets, so that both hear every offer.
    let _willing = scene
        .runtime("willing", Worker { arguments: &["--label", "mood=willing", "--allow-exec"], ..Worker::default() })
        .await;
    let _declining =
        scene.runtime("declining", Worker { arguments: &["--label", "mood=declining"], ..Worker::default() }).await;
    let phases: Vec<Value> = ["a", "b", "c"].iter().map(|id| scene.tracing_phase(id, &[], "sleep 0.3")).collect();
    scene.apply("plan", &json!({"phases": phases})).await;
    let status = scene.finished("plan").await;
    assert_eq!(status["state"], "Succeeded", "{status}");
    let traces = scene.traces();
    assert_eq!(times(&traces), [("a", 1), ("b", 1), ("c", 1)].into());
    for id in ["a", "b", "c"] {
        assert_eq!((&row(&status, id)["attempt"], &row(&status, id)["runtime"]), (&1.into(), &"willing".into()));
    }
    let declined = async {
        loop {
            let ack = acks.next().await.expect("the subscription lasts as long as the client");
            // The operator proves its subscriptions with empty messages to itself.
            let ack: Value = serde_json::from_slice(&ack.payload).unwrap_or_default();
            if ack["x-runtime"] == "declining" {
                return ack;
            }
        }
    };
    let ack = tokio::time::timeout(SOON, declined).await.expect("the other one answered too");
    assert_eq!((&ack["accepted"], &ack["x-reason"]), (&false.into(), &"NotAllowed".into()));
}
