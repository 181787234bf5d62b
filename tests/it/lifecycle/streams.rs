//! What JetStream adds, and that nothing is lost where it goes away: early peers' reports and clients' commands that
//! come while no operator listens.

use std::fs;

use serde_json::{Value, json};

use super::bed::{Bed, SOON, condition, phase_state};
use crate::resource::teach;
use crate::support::{NatsConfig, Passage, Signal, eventually, nats, own_cluster, scratch, shared_nats};

/// Publishes as a peer that knows only PMP 1.0.0.
async fn report(bed: &Bed, phase: &str, status: &str) {
    let client = bed.nats().await;
    let body = json!({"phaseId": phase, "status": status, "updated": "2025-07-19T20:00:00Z"}).to_string();
    client.publish(bed.subject("boot", "state"), body.into()).await.unwrap();
    client.flush().await.unwrap();
}

async fn command(bed: &Bed, command: &str, phase: Option<&str>) {
    let client = bed.nats().await;
    let mut body = json!({"command": command});
    if let Some(phase) = phase {
        body["x-phaseId"] = phase.into();
    }
    client.publish(bed.subject("boot", "control"), body.to_string().into()).await.unwrap();
    client.flush().await.unwrap();
}

fn chain() -> Value {
    json!([
        {"kind": "Phase", "id": "a", "spec": {}},
        {"kind": "Phase", "id": "b", "spec": {"waitFor": ["a"]}},
        {"kind": "Phase", "id": "c", "spec": {"waitFor": ["b"]}},
    ])
}

#[tokio::test]
async fn a_report_of_an_early_peer_that_came_while_no_operator_ran_counts() {
    let (bed, _cluster) = Bed::new("early-away").await;
    let mut operator = bed.operator();
    bed.create("boot", json!({"phases": chain(), "timeouts": {"offer": "300ms"}})).await;
    bed.until_phase("boot", "a", "Offered").await;
    report(&bed, "a", "running").await;
    let status = bed.until_phase("boot", "a", "Running").await;
    assert_eq!(condition(&status, "BusReady"), "True/JetStream");
    assert!(status["bus"]["sequence"].as_i64().unwrap() > 0, "{status:#}");
    operator.signal(Signal::KILL);
    operator.wait(SOON).await;
    report(&bed, "a", "complete").await;
    let operator = bed.operator();
    bed.until_phase("boot", "a", "Complete").await;
    // And what comes twice counts once, in whatever order.
    for phase in ["b", "b", "c"] {
        report(&bed, phase, "running").await;
        report(&bed, phase, "complete").await;
        bed.until_phase("boot", phase, "Complete").await;
    }
    let status = bed.until_state("boot", "Succeeded").await;
    assert_eq!(condition(&status, "BusReady"), "", "nobody listens any more");
    drop(operator);
}

#[tokio::test]
async fn a_command_that_came_while_no_operator_ran_is_obeyed_once() {
    let (bed, _cluster) = Bed::new("command-away").await;
    let mut operator = bed.operator();
    bed.create("boot", json!({"phases": chain(), "timeouts": {"offer": "300ms"}})).await;
    bed.until_phase("boot", "a", "Offered").await;
    for round in ["a", "b"] {
        operator.signal(Signal::KILL);
        operator.wait(SOON).await;
        command(&bed, "x-skip", Some(round)).await;
        operator = bed.operator();
        bed.until_phase("boot", round, "Skipped").await;
    }
    let requests = bed.api.get("boot").await.unwrap().spec.requests.unwrap_or_default();
    let skips = |phase: &str| requests.iter().filter(|request| request.phase.as_deref() == Some(phase)).count();
    assert!(skips("a") <= 1 && skips("b") == 1, "{requests:?}");
    command(&bed, "cancel", None).await;
    bed.until_state("boot", "Cancelled").await;
}

/// The command was taken by the stream; that the API server is away is nothing to whoever sent it.
#[tokio::test]
async fn commands_that_cannot_be_written_are_obeyed_when_the_api_server_is_back() {
    let (mut bed, cluster) = Bed::new("command-unwritten").await;
    let passage = Passage::to(cluster.address()).await;
    bed.kubeconfig = cluster.kubeconfig_through(passage.address);
    let operator = bed.operator();
    bed.create("boot", json!({"phases": chain(), "timeouts": {"offer": "300ms"}})).await;
    bed.until_phase("boot", "a", "Offered").await;
    passage.swallow();
    command(&bed, "x-skip", Some("a")).await;
    command(&bed, "pause", None).await;
    let is_tried = async || operator.stderr().contains("a command is tried again").then_some(());
    eventually(SOON, "the operator cannot write it", is_tried).await;
    passage.open();
    bed.until_phase("boot", "a", "Skipped").await;
    bed.until("boot", "it pauses", |status| status["state"] == "Suspended").await;
}

#[tokio::test]
async fn a_command_to_a_session_that_has_ended_is_obeyed_once_though_no_operator_ran() {
    let (bed, _cluster) = Bed::new("command-ended").await;
    let mut operator = bed.operator();
    let _runtime = bed.runtime("one").await;
    let phases = json!([bed.shell("a", &[], "echo a >> $DIR/ran; exit 1")]);
    bed.create("boot", json!({"phases": phases, "timeouts": {"offer": "300ms"}})).await;
    bed.until_state("boot", "Failed").await;
    for times in 2..=3 {
        operator.signal(Signal::KILL);
        operator.wait(SOON).await;
        command(&bed, "x-retry", Some("a")).await;
        operator = bed.operator();
        bed.until_ran(times).await;
        let is_over = |status: &Value| status["state"] == "Failed" && status["phases"][0]["run"] == json!(times);
        bed.until("boot", "it has failed once more", is_over).await;
    }
    // Whatever was to be obeyed once more would be before this.
    operator.signal(Signal::KILL);
    operator.wait(SOON).await;
    operator = bed.operator();
    command(&bed, "x-retry", Some("a")).await;
    bed.until("boot", "it has failed once more", |status| status["phases"][0]["run"] == json!(4)).await;
    bed.until_state("boot", "Failed").await;
    assert_eq!(bed.ran()["a"], 4);
    drop(operator);
}

#[tokio::test]
async fn a_session_whose_resource_went_while_no_operator_ran_is_cancelled_and_removed() {
    let cluster = own_cluster().await;
    teach(&cluster).await;
    let bed = Bed::on(&cluster, &shared_nats().await.url, "swept").await;
    let mut operator = bed.operator_of_all();
    let phases = json!([bed.gated("a", &[])]);
    bed.create("boot", json!({"phases": phases, "timeouts": {"offer": "300ms"}})).await;
    bed.create("stays", json!({"phases": phases})).await;
    let _runtime = bed.runtime("one").await;
    bed.pid("a").await;
    operator.signal(Signal::KILL);
    operator.wait(SOON).await;
    bed.api.delete("boot", &kube::api::DeleteParams::default()).await.unwrap();
    let client = bed.nats().await;
    let stream = format!("{}_reports", bed.prefix.replace('.', "_"));
    let jetstream = async_nats::jetstream::new(client);
    let has_start = async |name: &str| {
        let stream = jetstream.get_stream(&stream).await.unwrap();
        stream.get_last_raw_message_by_subject(&bed.subject(name, "start")).await.is_ok()
    };
    assert!(has_start("boot").await && has_start("stays").await);
    let _operator = bed.operator_of_all();
    eventually(SOON, "nothing is left of it", async || (!has_start("boot").await).then_some(())).await;
    assert!(has_start("stays").await);
}

#[tokio::test]
async fn jetstream_that_goes_away_in_mid_run_costs_nothing() {
    let cluster = crate::resource::cluster().await;
    let store = scratch("js-away");
    let settings = json!({"store_dir": store});
    let server = nats(NatsConfig::default().without_jetstream().setting("jetstream", settings.clone())).await;
    let bed = Bed::on(&cluster, &server.url, "js-away").await;
    let (_one, _two) = (bed.runtime("one").await, bed.runtime("two").await);
    let _operator = bed.operator();
    let phases = json!([
        bed.work("a", &[], "0"),
        bed.gated("b", &["a"]),
        bed.work("c", &["b"], "0"),
        bed.gated("d", &["c"]),
        bed.work("e", &["d"], "0"),
    ]);
    bed.create("boot", json!({"phases": phases, "timeouts": {"offer": "1s"}})).await;
    bed.pid("b").await;
    bed.until("boot", "reports are kept", |status| condition(status, "BusReady") == "True/JetStream").await;
    server.stop().await;
    fs::remove_dir_all(&store).unwrap();
    server.configure("jetstream", None);
    server.start().await;
    bed.open("b");
    bed.pid("d").await;
    bed.until("boot", "they are not", |status| condition(status, "BusReady") == "True/NoJetStream").await;
    server.stop().await;
    server.configure("jetstream", Some(settings));
    server.start().await;
    bed.until("boot", "they are kept anew", |status| condition(status, "BusReady") == "True/JetStream").await;
    bed.open("d");
    let status = bed.until_state("boot", "Succeeded").await;
    assert_eq!(phase_state(&status, "e"), "Complete");
    bed.assert_each_ran_once(&phases);
}
