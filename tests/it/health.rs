//! Health checks over a real socket, and the operator's process from its first log line to its end by a signal.

use std::{net::SocketAddr, process::Command, time::Duration};

use pmp::{
    controller::heart::Heart,
    gateway::{health::answer, serve::bind},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::support::{self, Process, Signal, bin, eventually};

const SOON: Duration = Duration::from_secs(30);

struct Health {
    heart: Heart,
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

async fn health() -> Health {
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (heart, stop) = (Heart::new(), CancellationToken::new());
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(answer(listener, heart.clone(), stop.clone()));
    Health { heart, address, stop, task }
}

/// Status and body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

#[tokio::test]
async fn readiness_names_what_it_waits_for_and_liveness_does_not_care() {
    let health = health().await;
    let cache = health.heart.gate("the cache of PhaseManifests");
    let _beat = health.heart.register("reconcile");
    let (code, body) = get(health.address, "/readyz").await.unwrap();
    assert_eq!((code, body.as_str()), (503, "waiting for the cache of PhaseManifests\n"));
    for path in ["/livez", "/healthz"] {
        assert_eq!(get(health.address, path).await.unwrap(), (200, "ok\n".to_owned()));
    }
    cache.open();
    assert_eq!(get(health.address, "/readyz").await.unwrap().0, 200);
    assert_eq!(get(health.address, "/elsewhere").await.unwrap().0, 404);
}

#[tokio::test]
async fn a_peer_that_stays_silent_is_hung_up_on() {
    let health = health().await;
    let mut silent = TcpStream::connect(health.address).await.unwrap();
    let mut half = TcpStream::connect(health.address).await.unwrap();
    half.write_all(b"GET /livez HTTP/1.1\r\nHost: ").await.unwrap();
    for stream in [&mut silent, &mut half] {
        let mut text = Vec::new();
        timeout(SOON, stream.read_to_end(&mut text)).await.expect("the server hangs up").ok();
    }
    assert_eq!(get(health.address, "/livez").await.unwrap().0, 200);
}

#[tokio::test]
async fn the_end_is_not_held_up_by_a_peer_that_stays_silent() {
    let health = health().await;
    let _silent = TcpStream::connect(health.address).await.unwrap();
    assert_eq!(get(health.address, "/livez").await.unwrap().0, 200);
    health.stop.cancel();
    timeout(SOON, health.task).await.expect("the server ends").unwrap();
    assert!(get(health.address, "/livez").await.is_none(), "nobody listens any more");
}

/// The operator's process on the real API server, in a namespace of its own, since others test there too. NATS is not
/// there, which is no reason to end.
async fn operator() -> (Process, SocketAddr) {
    let cluster = super::resource::cluster().await;
    let namespace = cluster.namespace("operator").await;
    let mut command = Command::new(bin());
    command.args(["operator", "--health-addr", "127.0.0.1:0", "--nats", "nats://127.0.0.1:1"]);
    command.args(["--log-format", "json", "--namespace", &namespace, "--kubeconfig"]).arg(&cluster.kubeconfig);
    let process = Process::start("operator", &command);
    let address = address(&process).await;
    (process, address)
}

/// Where an operator that was told port 0 answers health checks, as soon as its log names it.
pub(crate) async fn address(process: &Process) -> SocketAddr {
    eventually(SOON, "the operator says where its health is", async || {
        let log = process.stderr();
        let rest = log.split("127.0.0.1:").nth(1)?;
        let port: u16 = rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
        Some(SocketAddr::from(([127, 0, 0, 1], port)))
    })
    .await
}

#[tokio::test]
async fn the_operator_is_ready_without_nats_and_ends_in_order_by_a_signal() {
    let (mut process, address) = operator().await;
    eventually(SOON, "the operator is ready", async || (get(address, "/readyz").await?.0 == 200).then_some(())).await;
    assert_eq!(get(address, "/livez").await.unwrap().0, 200);
    process.signal(Signal::TERM);
    assert_eq!(process.wait(SOON).await, 0, "{}", process.tail());
    for line in process.stderr().lines() {
        let parsed: serde_json::Value = serde_json::from_str(line).expect("every line is JSON");
        assert!(parsed["fields"]["message"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn the_operator_ends_in_order_also_before_its_caches_are_filled() {
    let (mut process, _) = operator().await;
    eventually(SOON, "the operator begins", async || process.stderr().contains("the API server answers").then_some(()))
        .await;
    process.signal(Signal::INT);
    assert_eq!(process.wait(SOON).await, 0, "{}", process.tail());
}

#[tokio::test]
async fn an_operator_without_an_api_server_waits_and_can_be_stopped() {
    let dir = support::scratch("nowhere");
    let kubeconfig = dir.join("kubeconfig");
    let text = "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{name: x, context: {cluster: x, user: x}}]\n\
                clusters: [{name: x, cluster: {server: 'http://127.0.0.1:1'}}]\nusers: [{name: x, user: {}}]\n";
    std::fs::write(&kubeconfig, text).unwrap();
    let mut command = Command::new(bin());
    command.args(["operator", "--health-addr", "127.0.0.1:0", "--kubeconfig"]).arg(&kubeconfig);
    let mut process = Process::start("operator", &command);
    eventually(SOON, "the operator waits", async || process.stderr().contains("does not answer yet").then_some(()))
        .await;
    process.signal(Signal::TERM);
    assert_eq!(process.wait(SOON).await, 0, "{}", process.tail());
    assert!(!process.stderr().contains('\u{1b}'), "colours are for terminals: {:?}", process.stderr());
}
