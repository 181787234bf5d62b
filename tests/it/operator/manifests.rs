//! What people paste under spec.phases, right and wrong.

use std::fs;

use serde_json::{Value, json};

use super::{SOON, Scene, condition, examples, row};
use crate::support::eventually;

#[tokio::test]
async fn the_protocols_own_examples_run_in_both_spellings_on_the_cluster() {
    let scene = Scene::set("spellings").await;
    let _taker = scene.peer("taker").await;
    let names = ["protocol-pascal", "protocol-camel"];
    for name in names {
        let text = fs::read_to_string(examples(&format!("{name}.json"))).expect("the example exists");
        let phases: Value = serde_json::from_str(&text).expect("the example is JSON");
        scene.apply(name, &json!({"phases": phases})).await;
    }
    for name in names {
        let status = scene.finished(name).await;
        assert_eq!(status["state"], "Succeeded", "{status}");
        assert_eq!(row(&status, "preflight")["runtime"], "taker");
    }
}

#[tokio::test]
async fn every_mistake_is_named_on_the_resource_and_an_edit_mends_them() {
    let scene = Scene::set("mistakes").await;
    let _taker = scene.peer("taker").await;
    let phase = |id: &str, waits: &[&str]| json!({"kind": "Phase", "id": id, "spec": {"waitFor": waits}});
    let wrong = json!([
        phase("chicken", &["egg"]),
        phase("egg", &["chicken"]),
        phase("twin", &[]),
        phase("twin", &[]),
        phase("lost", &["nobody"]),
    ]);
    scene.apply("plan", &json!({"phases": wrong})).await;
    scene.wait("plan", "condition=Stalled").await;
    let status = scene.get("plan").await["status"].take();
    let accepted = condition(&status, "Accepted");
    assert_eq!((&accepted["status"], &accepted["reason"]), (&"False".into(), &"InvalidManifest".into()));
    let message = accepted["message"].as_str().expect("the condition has a message");
    for mistake in ["chicken -> egg -> chicken", "twin", "nobody"] {
        assert!(message.contains(mistake), "`{mistake}` is not in {message}");
    }
    assert_eq!(condition(&status, "Ready")["status"], "False");
    assert_eq!(condition(&status, "Reconciling"), &Value::Null);
    eventually(SOON, "describe says why", async || {
        let text = scene.kubectl(&["describe", "pm", "plan"]).await;
        text.split_once("\nEvents:")?.1.contains("InvalidManifest").then_some(())
    })
    .await;

    let right = json!([phase("chicken", &["egg"]), phase("egg", &[]), phase("twin", &[]), phase("lost", &["twin"])]);
    scene.apply("plan", &json!({"phases": right})).await;
    let status = scene.finished("plan").await;
    assert_eq!((&status["state"], &status["progress"]), (&"Succeeded".into(), &"4/4".into()), "{status}");
    assert_eq!(condition(&status, "Accepted")["status"], "True");
    assert_eq!(condition(&status, "Stalled"), &Value::Null);
}
