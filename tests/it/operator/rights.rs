//! The operator as a pod has it: its own account, with the rights that docs/operations.md gives and no others.

use std::fs;

use serde_json::json;

use super::{SOON, Scene, Worker, path};
use crate::{
    docs::{blocks, text},
    support::{eventually, scratch},
};

const ACCOUNT: &str = "pmp-operator";

/// A scene whose operator has the documented rights only.
async fn scene() -> Scene {
    let cluster = crate::resource::cluster().await;
    let namespace = cluster.namespace("rights").await;
    let role = blocks(&text("docs/operations.md"), "yaml").into_iter().find(|block| block.contains("ClusterRole"));
    let file = scratch("rights").join("role.yaml");
    fs::write(&file, role.expect("the document has the role")).expect("the scratch directory is writable");
    let subject = format!("--serviceaccount={namespace}:{ACCOUNT}");
    let binding = ["create", "clusterrolebinding", &namespace, "--clusterrole=pmp-operator", &subject];
    for arguments in [&["apply", "-f", path(&file)][..], &binding] {
        let ran = cluster.kubectl(arguments).await;
        assert!(ran.status.success(), "{ran:?}");
    }
    let kubeconfig = cluster.service_account_kubeconfig(&namespace, ACCOUNT).await;
    Scene::set_as("rights", cluster, namespace, &kubeconfig).await
}

#[tokio::test]
async fn documented_rights_are_enough_for_everything_that_the_operator_does() {
    let scene = scene().await;
    let _worker = scene.runtime("worker", Worker { arguments: &["--allow-exec"], env: &[] }).await;
    let phase = |command: &str| {
        json!({"kind": "Phase", "id": "a", "spec": {
            "x-exec": {"command": [command]},
            "onSuccess": {"spec": {"message": "done", "labels": {"stage": "done"}}},
        }})
    };

    scene.apply("edited", &json!({"phases": [phase("true")], "revisionHistoryLimit": 0})).await;
    scene.until("edited", 1, "Succeeded").await;
    scene.apply("edited", &json!({"phases": [phase("echo")], "revisionHistoryLimit": 0})).await;
    scene.until("edited", 2, "Succeeded").await;
    eventually(SOON, "the handler's label and its Event are there", async || {
        let label = scene.get("edited").await["metadata"]["labels"]["stage"].take();
        let story = scene.kubectl(&["describe", "pm", "edited"]).await;
        (label == "done" && story.contains("OnSuccess")).then_some(())
    })
    .await;

    let manifest = format!("--from-literal=manifest={}", json!([phase("true")]));
    scene.kubectl(&["create", "configmap", "plan", &manifest]).await;
    scene.apply("mapped", &json!({"manifestFrom": {"configMap": {"name": "plan", "key": "manifest"}}})).await;
    scene.until("mapped", 1, "Succeeded").await;

    scene.apply("brief", &json!({"phases": [phase("true")], "ttlAfterFinished": "1s"})).await;
    eventually(SOON, "the resource is deleted after its time", async || {
        let there = scene.kubectl(&["get", "pm", "brief", "--ignore-not-found"]).await;
        there.is_empty().then_some(())
    })
    .await;
    let log = scene.operator.stderr().to_lowercase();
    assert!(!log.contains("forbidden") && !log.contains("permissiondenied"), "{log}");
}
