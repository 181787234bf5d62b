//! `pmp gateway`: without an operator, for all sessions or beside one; and where it refuses to listen.

use std::process::Command;

use kube::{Api, api::PostParams};
use pmp::resource::PhaseManifest;
use serde_json::json;

use super::{SOON, address, client::Call, phase};
use crate::support::{Cluster, Process, Signal, bin, eventually};

async fn gateway(cluster: &Cluster, arguments: &[&str]) -> (Process, std::net::SocketAddr) {
    let mut command = Command::new(bin());
    command.args(["gateway", "--gateway-addr", "127.0.0.1:0", "--kubeconfig"]).arg(&cluster.kubeconfig).args(arguments);
    let process = Process::start("gateway", &command);
    let address = address(&process).await;
    eventually(SOON, "the gateway is ready", async || {
        (Call::new(address, "GET", "/ready").try_send().await?.code == 200).then_some(())
    })
    .await;
    (process, address)
}

#[tokio::test]
async fn a_gateway_beside_one_session_means_it_and_no_other() {
    let cluster = crate::resource::cluster().await;
    let namespace = cluster.namespace("sidecar").await;
    let (mut process, address) = gateway(&cluster, &["--session", "mine", "--namespace", &namespace]).await;
    let told = Call::new(address, "POST", "/plan").json(&json!([phase("a", &[])])).send().await.expect(200);
    assert_eq!((&told["sessionId"], &told["namespace"]), (&"mine".into(), &namespace.as_str().into()));
    assert_eq!(Call::new(address, "GET", "/plan").send().await.expect(200)[0]["id"], "a");
    assert_eq!(Call::new(address, "GET", "/status?session=mine").send().await.expect(200)["name"], "mine");
    let api: Api<PhaseManifest> = Api::namespaced(kube::Client::clone(&cluster.client), &namespace);
    let other = PhaseManifest::new("other", serde_json::from_value(json!({"phases": []})).unwrap());
    api.create(&PostParams::default(), &other).await.unwrap();
    for target in ["/status?session=other", "/plan?namespace=elsewhere"] {
        assert_eq!(Call::new(address, "GET", target).send().await.problem(404), "NoSuchSession");
    }
    let list = Call::new(address, "GET", "/sessions").send().await.expect(200);
    assert_eq!(list["sessions"].as_array().unwrap().len(), 1, "{list}");
    process.signal(Signal::TERM);
    assert_eq!(process.wait(SOON).await, 0, "{}", process.tail());
}

#[tokio::test]
async fn without_nats_logs_are_503_and_it_says_what_to_do() {
    let cluster = crate::resource::cluster().await;
    let namespace = cluster.namespace("no-nats").await;
    let (_process, address) = gateway(&cluster, &["--namespace", &namespace]).await;
    Call::new(address, "POST", "/plan?session=s").json(&json!([])).send().await.expect(200);
    let answer = Call::new(address, "GET", "/logs?session=s").send().await;
    assert_eq!(answer.problem(503), "NoLogs");
    assert!(answer.json()["detail"].as_str().unwrap().contains("--nats"));
}

#[tokio::test]
async fn an_address_that_others_can_reach_is_refused() {
    for verb in ["gateway", "operator"] {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
            let mut command = tokio::process::Command::new(bin());
            command.args([verb, "--gateway-addr", address]);
            if verb == "operator" {
                command.args(["--health-addr", "127.0.0.1:0"]);
            }
            let ran = command.output().await.unwrap();
            let said = String::from_utf8_lossy(&ran.stderr).into_owned();
            assert!(!ran.status.success() && said.contains("loopback only"), "{verb} {address}: {said}");
        }
    }
}

#[tokio::test]
async fn a_session_id_of_another_namespace_is_refused_where_several_are_served() {
    let cluster = crate::resource::cluster().await;
    let (one, two) = (cluster.namespace("many").await, cluster.namespace("many").await);
    let (_process, address) = gateway(&cluster, &["--namespace", &one, "--namespace", &two]).await;
    let submit = async |target: String| Call::new(address, "POST", &target).json(&json!([])).send().await;
    assert_eq!(submit(format!("/plan?session=boot&namespace={one}")).await.problem(400), "BadParameter");
    assert_eq!(submit(format!("/plan?session={two}_boot&namespace={one}")).await.problem(400), "BadParameter");
    // What a whole resource says is judged alike.
    let meta = json!({"name": "odd", "namespace": one});
    let spec = json!({"sessionId": "boot", "phases": []});
    let whole = json!({"apiVersion": "pmp.dev/v1alpha1", "kind": "PhaseManifest", "metadata": meta, "spec": spec});
    let answer = Call::new(address, "POST", "/plan").json(&whole).send().await;
    assert_eq!(answer.problem(400), "BadParameter");
    let told = submit(format!("/plan?session={one}_boot&namespace={one}")).await.expect(200);
    assert_eq!(told["name"], "boot");
    let told = submit(format!("/plan?namespace={two}")).await.expect(200);
    assert!(told["sessionId"].as_str().unwrap().starts_with(&format!("{two}_plan-")), "{told}");
}
