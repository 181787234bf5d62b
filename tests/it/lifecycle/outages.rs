//! Servers and runtimes that are away for a while.

use std::time::Duration;

use serde_json::{Value, json};

use super::bed::{Bed, SOON, condition, phase_state};
use crate::{
    health,
    support::{NatsConfig, Signal, eventually, nats, own_cluster, shared_nats},
};

fn chain(bed: &Bed, length: usize, seconds: &str) -> Value {
    (0..length)
        .map(|n| {
            let before = n.checked_sub(1).map(|before| format!("p{before}"));
            let waits: Vec<&str> = before.as_deref().into_iter().collect();
            bed.work(&format!("p{n}"), &waits, seconds)
        })
        .collect()
}

#[tokio::test]
async fn a_nats_server_that_was_away_in_mid_run_costs_time_and_nothing_else() {
    let cluster = crate::resource::cluster().await;
    let server = nats(NatsConfig::default()).await;
    let bed = Bed::on(&cluster, &server.url, "nats-away").await;
    let (_one, _two) = (bed.shipped_runtime("one").await, bed.runtime("two").await);
    let mut phases = chain(&bed, 6, "0.2");
    phases[2] = bed.gated("p2", &["p1"]);
    let _operator = bed.operator();
    bed.create("boot", json!({"phases": phases, "timeouts": {"offer": "1s"}})).await;
    bed.pid("p2").await;
    bed.until_phase("boot", "p2", "Running").await;
    server.stop().await;
    // Its end is heard of by nobody.
    bed.open("p2");
    bed.until_ran(3).await;
    server.start().await;
    bed.until_state("boot", "Succeeded").await;
    bed.assert_each_ran_once(&phases);
}

#[tokio::test]
async fn an_api_server_that_hangs_in_mid_run_holds_no_phase_up() {
    let cluster = own_cluster().await;
    crate::resource::teach(&cluster).await;
    let bed = Bed::on(&cluster, &shared_nats().await.url, "api-hung").await;
    let _runtime = bed.runtime("one").await;
    // Eight of them outlast the five seconds that a call to the API server is given.
    let phases = chain(&bed, 12, "0.8");
    let _operator = bed.operator();
    bed.create("boot", json!({"phases": phases, "timeouts": {"offer": "1s"}})).await;
    bed.until_ran(2).await;
    cluster.signal_api_server(Signal::STOP);
    bed.until_ran(10).await;
    cluster.signal_api_server(Signal::CONT);
    bed.until_state("boot", "Succeeded").await;
    bed.assert_each_ran_once(&phases);
}

#[tokio::test]
async fn without_a_runtime_the_resource_says_so_until_one_comes() {
    let (bed, _cluster) = Bed::new("no-runtime").await;
    let _operator = bed.operator();
    let phases = json!([bed.work("a", &[], "0")]);
    bed.create("boot", json!({"phases": phases, "timeouts": {"offer": "200ms"}})).await;
    let status = bed.until_state("boot", "NoRuntime").await;
    assert_eq!(condition(&status, "RuntimeAvailable"), "False/OfferUnanswered");
    bed.until("boot", "the phase says why it waits", |status| status["phases"][0]["reason"] == "Unanswered").await;
    let _runtime = bed.runtime("late").await;
    let status = bed.until_state("boot", "Succeeded").await;
    assert_eq!(condition(&status, "RuntimeAvailable"), "True/RuntimeAnswers");
    assert_eq!(phase_state(&status, "a"), "Complete");
}

#[tokio::test]
async fn an_operator_without_nats_is_alive_and_ready() {
    let (mut bed, _cluster) = Bed::new("no-nats").await;
    bed.nats_url = "nats://127.0.0.1:1".to_owned();
    let operator = bed.operator();
    let address = health::address(&operator).await;
    for path in ["/livez", "/readyz"] {
        eventually(SOON, path, async || (health::get(address, path).await?.0 == 200).then_some(())).await;
    }
    bed.create("boot", json!({"phases": [bed.work("a", &[], "0")]})).await;
    bed.until("boot", "the resource is looked at", |status| condition(status, "Accepted") == "True/Valid").await;
    let answer = tokio::time::timeout(Duration::from_secs(5), health::get(address, "/readyz")).await;
    assert_eq!(answer.unwrap().unwrap().0, 200);
}
