//! What JetStream adds, and that nothing is lost where it goes away: early peers' reports and clients' commands that
//! come while no operator listens.

use std::{fs, time::Duration};

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

/// What the streams keep of a session.
struct Kept<'a> {
    bed: &'a Bed,
    name: &'a str,
    jetstream: async_nats::jetstream::Context,
}

impl<'a> Kept<'a> {
    async fn of(bed: &'a Bed, name: &'a str) -> Self {
        Self { bed, name, jetstream: async_nats::jetstream::new(bed.nats().await) }
    }

    fn stream(&self, kind: &str) -> String {
        format!("{}_{kind}", self.bed.prefix.replace('.', "_"))
    }

    /// Of the newest message on the channel.
    async fn place(&self, kind: &str, channel: &str) -> Option<u64> {
        let stream = self.jetstream.get_stream(self.stream(kind)).await.ok()?;
        let last = stream.get_last_raw_message_by_subject(&self.bed.subject(self.name, channel)).await;
        last.ok().map(|message| message.sequence)
    }

    async fn has(&self, kind: &str, channel: &str) -> bool {
        self.place(kind, channel).await.is_some()
    }
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
    let _runtime = bed.runtime("one").await;
    // The second one keeps the session under way.
    let phases = json!([bed.shell("a", &[], "echo a >> $DIR/ran; exit 1"), bed.gated("b", &[])]);
    bed.create("boot", json!({"phases": phases, "failurePolicy": "Isolate", "timeouts": {"offer": "300ms"}})).await;
    bed.pid("b").await;
    for runs in [1, 2, 3] {
        bed.until_ran(runs).await;
        bed.until_phase("boot", "a", "Failed").await;
        operator.signal(Signal::KILL);
        operator.wait(SOON).await;
        if runs < 3 {
            command(&bed, "x-retry", Some("a")).await;
        }
        operator = bed.operator();
    }
    bed.until("boot", "it is heard again", |status| condition(status, "BusReady") == "True/JetStream").await;
    bed.open("b");
    bed.until_state("boot", "Failed").await;
    assert_eq!(bed.ran(), [("a".to_owned(), 3), ("b".to_owned(), 1)].into());
}

#[tokio::test]
async fn a_cancel_that_comes_over_the_bus_is_obeyed() {
    let (bed, _cluster) = Bed::new("bus-cancel").await;
    let _operator = bed.operator();
    bed.create("boot", json!({"phases": chain(), "timeouts": {"offer": "300ms"}})).await;
    bed.until_phase("boot", "a", "Offered").await;
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
    let ended = |status: &Value| status["phases"][0]["finishedAt"].clone();
    let mut last = Value::Null;
    let mut until_failed_again = async || {
        let is_news = |status: &Value| status["state"] == "Failed" && ended(status) != last;
        last = ended(&bed.until("boot", "it has failed once more", is_news).await);
    };
    until_failed_again().await;
    for _ in 0..2 {
        operator.signal(Signal::KILL);
        operator.wait(SOON).await;
        command(&bed, "x-retry", Some("a")).await;
        operator = bed.operator();
        until_failed_again().await;
    }
    // Whatever would be obeyed once more is obeyed before this.
    operator.signal(Signal::KILL);
    operator.wait(SOON).await;
    operator = bed.operator();
    command(&bed, "x-retry", Some("a")).await;
    until_failed_again().await;
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
    let (boot, stays) = (Kept::of(&bed, "boot").await, Kept::of(&bed, "stays").await);
    assert!(boot.has("reports", "start").await && stays.has("reports", "start").await);
    // What it cannot remove of one stream holds up nothing.
    boot.jetstream.delete_stream(boot.stream("record")).await.unwrap();
    let _operator = bed.operator_of_all();
    eventually(SOON, "nothing is left of it", async || (!boot.has("reports", "start").await).then_some(())).await;
    assert!(stays.has("reports", "start").await);
}

#[tokio::test]
async fn a_session_whose_resource_went_while_nats_was_away_is_cancelled_and_removed() {
    let cluster = own_cluster().await;
    teach(&cluster).await;
    let server = nats(NatsConfig::default()).await;
    let bed = Bed::on(&cluster, &server.url, "swept-later").await;
    let _operator = bed.operator_of_all();
    let phases = json!([bed.gated("a", &[])]);
    bed.create("boot", json!({"phases": phases, "timeouts": {"offer": "300ms"}})).await;
    let _runtime = bed.runtime("one").await;
    let pid = bed.pid("a").await;
    server.stop().await;
    bed.api.delete("boot", &kube::api::DeleteParams::default()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    server.start().await;
    bed.until_dead(pid).await;
    let boot = Kept::of(&bed, "boot").await;
    eventually(SOON, "nothing is left of it", async || (!boot.has("reports", "start").await).then_some(())).await;
}

#[tokio::test]
async fn a_resource_deleted_after_its_verdict_leaves_nothing_in_the_streams() {
    let (bed, _cluster) = Bed::new("ended-gone").await;
    let _operator = bed.operator();
    let _runtime = bed.runtime("one").await;
    let spec = json!({"phases": [bed.work("a", &[], "0")]});
    bed.create("boot", spec.clone()).await;
    bed.until_state("boot", "Succeeded").await;
    let boot = Kept::of(&bed, "boot").await;
    let first = boot.place("reports", "start").await.unwrap();
    bed.api.delete("boot", &kube::api::DeleteParams::default()).await.unwrap();
    eventually(SOON, "nothing is left of it", async || {
        let is_gone = !boot.has("reports", "start").await && !boot.has("record", "events").await;
        is_gone.then_some(())
    })
    .await;
    // And of one that is made anew at once, only what the first one said.
    bed.create("boot", spec.clone()).await;
    bed.until_state("boot", "Succeeded").await;
    let second = boot.place("reports", "start").await.unwrap();
    bed.api.delete("boot", &kube::api::DeleteParams::default()).await.unwrap();
    bed.create("boot", spec).await;
    bed.until_state("boot", "Succeeded").await;
    let third = boot.place("reports", "start").await;
    assert!(first < second && third.is_some_and(|third| third > second), "{first} {second} {third:?}");
}

/// Whether the server has JetStream now.
async fn keeps_anything(bed: &Bed) -> bool {
    async_nats::jetstream::new(bed.nats().await).query_account().await.is_ok()
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
    // Connections stay: what is gone is the stream alone.
    server.configure("jetstream", None);
    server.reload();
    eventually(SOON, "nobody keeps anything", async || (!keeps_anything(&bed).await).then_some(())).await;
    fs::remove_dir_all(&store).unwrap();
    bed.open("b");
    bed.pid("d").await;
    // A server that had JetStream answers nothing in its place; one that never had says so.
    let is_not = |status: &Value| ["True/NoJetStream", "True/BusTimeout"].contains(&&*condition(status, "BusReady"));
    bed.until("boot", "they are not", is_not).await;
    server.configure("jetstream", Some(settings));
    server.reload();
    bed.until("boot", "they are kept anew", |status| condition(status, "BusReady") == "True/JetStream").await;
    bed.open("d");
    let status = bed.until_state("boot", "Succeeded").await;
    assert_eq!(phase_state(&status, "e"), "Complete");
    bed.assert_each_ran_once(&phases);
}
