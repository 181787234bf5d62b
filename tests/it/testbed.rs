//! The test bed itself: what the other tests take for granted about their servers.

use std::process::Command;
use std::time::Duration;

use async_nats::ConnectOptions;
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams};
use serde_json::json;

use crate::support::{
    NatsConfig, Process, Signal, Tls, alive, bin, cluster, eventually, nats, own_cluster, python, shared_nats, tool,
    unique,
};

const SOON: Duration = Duration::from_secs(20);

/// Set in the copy of this test binary that is started to be killed.
const DOOMED: &str = "PMP_TESTBED_DOOMED";

/// The version of the Kubernetes that `testbed/go.mod` pins.
fn pinned_version() -> String {
    let pins = include_str!("../../testbed/go.mod");
    let line = pins.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v"));
    format!("v{}", line.expect("go.mod pins Kubernetes").trim_end_matches(" // indirect"))
}

#[tokio::test]
async fn api_server_is_the_pinned_one() {
    let cluster = cluster().await;
    let version = cluster.client.apiserver_version().await.unwrap();
    // Binaries that the caller brought are the caller's choice.
    if std::env::var_os("KUBEBUILDER_ASSETS").is_none() {
        assert_eq!(version.git_version, pinned_version());
    }
    assert_eq!(version.major, "1");
}

#[tokio::test]
async fn kubectl_reaches_the_api_server_and_the_namespace_of_the_test() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("kubectl").await;
    let ready = cluster.kubectl(&["get", "--raw", "/readyz"]).await;
    assert_eq!(String::from_utf8_lossy(&ready.stdout), "ok", "{ready:?}");
    let made = cluster.kubectl(&["-n", &namespace, "create", "configmap", "hello", "--from-literal=to=world"]).await;
    assert!(made.status.success(), "{made:?}");
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &namespace);
    let found = maps.get("hello").await.unwrap();
    assert_eq!(found.data.unwrap()["to"], "world");
}

#[tokio::test]
async fn two_tests_never_share_a_namespace() {
    let cluster = cluster().await;
    assert_ne!(cluster.namespace("twin").await, cluster.namespace("twin").await);
}

#[tokio::test]
async fn service_account_may_do_what_its_role_says_and_nothing_else() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("rbac").await;
    let client = cluster.service_account_client(&namespace, "reader").await;
    let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let refused = maps.list(&ListParams::default()).await.unwrap_err();
    assert!(matches!(refused, kube::Error::Api(status) if status.is_forbidden()));

    let role = ["-n", &namespace, "create", "role", "reader", "--verb=list", "--resource=configmaps"];
    assert!(cluster.kubectl(&role).await.status.success());
    let account = format!("--serviceaccount={namespace}:reader");
    let binding = ["-n", &namespace, "create", "rolebinding", "reader", "--role=reader", &account];
    assert!(cluster.kubectl(&binding).await.status.success());
    eventually(SOON, "the role is in force", async || maps.list(&ListParams::default()).await.ok()).await;
    let refused = maps.get("anything").await.unwrap_err();
    assert!(matches!(refused, kube::Error::Api(status) if status.is_forbidden()));
}

#[tokio::test]
async fn api_server_of_its_own_may_crash_and_hang_and_keeps_its_objects() {
    let cluster = own_cluster().await;
    let namespace = cluster.namespace("crash").await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &namespace);
    let made = cluster.kubectl(&["-n", &namespace, "create", "configmap", "kept"]).await;
    assert!(made.status.success(), "{made:?}");

    cluster.kill_api_server();
    assert!(maps.get("kept").await.is_err(), "nobody answers while it is away");
    cluster.start_api_server().await;
    maps.get("kept").await.unwrap();

    cluster.signal_api_server(Signal::STOP);
    let hanging = tokio::time::timeout(Duration::from_millis(300), maps.get("kept")).await;
    assert!(hanging.is_err(), "a stopped process does not answer");
    cluster.signal_api_server(Signal::CONT);
    tokio::time::timeout(SOON, maps.get("kept")).await.unwrap().unwrap();
}

#[tokio::test]
async fn kstatus_judges_an_object_as_flux_does() {
    let objects = json!([
        {"apiVersion": "a/v1", "kind": "A", "metadata": {"name": "old", "generation": 2}, "status": {"observedGeneration": 1}},
        {"apiVersion": "a/v1", "kind": "A", "metadata": {"name": "done", "generation": 2}, "status": {"observedGeneration": 2,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Succeeded", "message": ""}]}},
        {"apiVersion": "a/v1", "kind": "A", "metadata": {"name": "stuck", "generation": 1}, "status": {"observedGeneration": 1,
            "conditions": [{"type": "Stalled", "status": "True", "reason": "Failed", "message": ""}]}},
    ]);
    let file = crate::support::scratch("kstatus").join("objects.json");
    std::fs::write(&file, objects.to_string()).unwrap();
    let input = std::fs::File::open(&file).unwrap();
    let output = Command::new(tool("kstatus")).stdin(input).output().unwrap();
    let verdicts: Vec<serde_json::Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let judged: Vec<_> =
        verdicts.iter().map(|v| (v["name"].as_str().unwrap(), v["status"].as_str().unwrap())).collect();
    assert_eq!(judged, [("old", "InProgress"), ("done", "Current"), ("stuck", "Failed")]);
}

#[tokio::test]
async fn message_goes_round_on_the_shared_nats() {
    let server = shared_nats().await;
    let client = server.connect(ConnectOptions::new()).await.unwrap();
    let subject = unique("testbed.echo");
    let mut requests = client.subscribe(subject.clone()).await.unwrap();
    let answering = client.clone();
    let responder = tokio::spawn(async move {
        let request = requests.next().await.unwrap();
        answering.publish(request.reply.unwrap(), request.payload).await.unwrap();
    });
    let answer = tokio::time::timeout(SOON, client.request(subject, "hello".into())).await.unwrap().unwrap();
    assert_eq!(answer.payload, "hello");
    responder.await.unwrap();
}

#[tokio::test]
async fn user_of_nats_may_publish_only_where_it_is_allowed() {
    let users = json!({"users": [
        {"user": "operator", "password": "one"},
        {"user": "worker", "password": "two", "permissions": {"publish": {"allow": ["allowed.>"]}, "subscribe": {"deny": [">"]}}},
    ]});
    let server = nats(NatsConfig::default().without_jetstream().authorization(users)).await;
    assert!(server.connect(ConnectOptions::new()).await.is_err(), "nobody comes in without a name");
    let login = |user: &str, password: &str| ConnectOptions::with_user_and_password(user.into(), password.into());
    let operator = server.connect(login("operator", "one")).await.unwrap();
    let mut heard = operator.subscribe(">").await.unwrap();
    operator.flush().await.unwrap();

    let worker = server.connect(login("worker", "two")).await.unwrap();
    worker.publish("denied.subject", "no".into()).await.unwrap();
    worker.publish("allowed.subject", "yes".into()).await.unwrap();
    let first = tokio::time::timeout(SOON, heard.next()).await.unwrap().unwrap();
    assert_eq!(first.subject.as_str(), "allowed.subject");
}

#[tokio::test]
async fn nats_takes_a_token_and_an_nkey() {
    let server = nats(NatsConfig::default().authorization(json!({"token": "secret"}))).await;
    assert!(server.connect(ConnectOptions::with_token("guess".into())).await.is_err());
    server.connect(ConnectOptions::with_token("secret".into())).await.unwrap();

    let key = nkeys::KeyPair::new_user();
    let server = nats(NatsConfig::default().authorization(json!({"users": [{"nkey": key.public_key()}]}))).await;
    let stranger = nkeys::KeyPair::new_user().seed().unwrap();
    assert!(server.connect(ConnectOptions::with_nkey(stranger)).await.is_err());
    server.connect(ConnectOptions::with_nkey(key.seed().unwrap())).await.unwrap();
}

#[tokio::test]
async fn nats_with_mutual_tls_turns_a_client_without_certificate_away() {
    let server = nats(NatsConfig::default().tls(Tls::Mutual)).await;
    server.connect(ConnectOptions::new()).await.unwrap();
    let authority = server.authority.clone().unwrap();
    let bare = ConnectOptions::new().require_tls(true).add_root_certificates(authority);
    assert!(bare.connect(&server.url).await.is_err());

    let open = nats(NatsConfig::default().tls(Tls::Server)).await;
    open.connect(ConnectOptions::new()).await.unwrap();
}

#[tokio::test]
async fn nats_keeps_its_store_and_its_port_over_a_stop_and_a_crash() {
    let server = nats(NatsConfig::default().setting("max_payload", json!(2048))).await;
    let client = server.connect(ConnectOptions::new()).await.unwrap();
    assert_eq!(client.server_info().max_payload, 2048);
    ask(&client, "$JS.API.STREAM.CREATE.kept", json!({"name": "kept", "subjects": ["kept.>"], "storage": "file"}))
        .await;
    ask(&client, "kept.one", json!(1)).await;

    let first = server.pid();
    server.stop().await;
    assert!(!alive(first));
    server.start().await;
    let second = server.pid();
    server.kill();
    assert!(!alive(second));
    server.start().await;
    assert!(!server.log().is_empty());

    let client = server.connect(ConnectOptions::new()).await.unwrap();
    let info = ask(&client, "$JS.API.STREAM.INFO.kept", json!({})).await;
    assert_eq!(info["state"]["messages"], 1, "{info}");
}

/// A request whose answer is JSON without an error, as JetStream's own interface gives them.
async fn ask(client: &async_nats::Client, subject: &'static str, body: serde_json::Value) -> serde_json::Value {
    let answer = tokio::time::timeout(SOON, client.request(subject, body.to_string().into())).await.unwrap().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer["error"].is_null(), "{subject}: {answer}");
    answer
}

#[tokio::test]
async fn python_peer_reaches_nats() {
    let server = shared_nats().await;
    let program = "
import asyncio, nats, os
async def main():
    client = await nats.connect(os.environ['NATS_URL'])
    print(client.connected_server_version)
    await client.drain()
asyncio.run(main())
";
    let mut command = Command::new(python());
    let mut peer = Process::start("python", command.args(["-c", program]).env("NATS_URL", &server.url));
    let code = peer.wait(SOON).await;
    assert_eq!(code, 0, "{}", peer.tail());
    assert!(peer.stdout().contains("v2."), "{}", peer.tail());
}

#[tokio::test]
async fn process_reports_its_output_its_exit_code_and_its_signal() {
    let shell = |script: &str| Process::start("shell", Command::new("sh").args(["-c", script]));
    let mut talker = shell("echo out; echo err >&2; exit 7");
    assert_eq!(talker.wait(SOON).await, 7);
    assert_eq!((talker.stdout().as_str(), talker.stderr().as_str()), ("out\n", "err\n"));

    let mut polite = shell("trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done");
    eventually(SOON, "the trap is set", async || polite.stdout().contains("ready").then_some(())).await;
    polite.signal(Signal::TERM);
    assert_eq!(polite.wait(SOON).await, 3);

    let mut stubborn = shell("exec sleep 600");
    stubborn.signal(Signal::KILL);
    assert_eq!(stubborn.wait(SOON).await, 128 + 9);
}

#[tokio::test]
async fn product_binary_is_there_to_be_started() {
    let mut product = Process::start("pmp", Command::new(bin()).arg("--version"));
    assert_eq!(product.wait(SOON).await, 0, "{}", product.tail());
}

/// Started twice: as itself, and with `DOOMED` set as the binary that is killed while its server runs.
#[tokio::test]
async fn servers_of_a_killed_test_binary_are_gone() {
    if std::env::var_os(DOOMED).is_some() {
        let server = nats(NatsConfig::default()).await;
        println!("server {}", server.pid());
        return std::future::pending().await;
    }
    let itself = std::env::current_exe().unwrap();
    let arguments = ["--exact", "testbed::servers_of_a_killed_test_binary_are_gone", "--nocapture"];
    let mut doomed = Process::start("doomed", Command::new(itself).args(arguments).env(DOOMED, "1"));
    let server: u32 = eventually(crate::support::START_DEADLINE, "its server runs", async || {
        let stdout = doomed.stdout();
        let line = stdout.lines().find_map(|line| line.split_once("server ").map(|(_, pid)| pid.to_owned()));
        line.and_then(|pid| pid.parse().ok())
    })
    .await;
    assert!(alive(server));
    doomed.signal(Signal::KILL);
    assert_eq!(doomed.wait(SOON).await, 128 + 9);
    eventually(SOON, "its server is gone", async || (!alive(server)).then_some(())).await;
}
