//! Operators that end, in order or not, and one too many.

use std::time::Duration;

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};

use super::bed::{Bed, SOON, condition, phase_state};
use crate::support::Signal;

/// `layers` rows of `width` short phases, each waiting for one of the row before.
fn layered(bed: &Bed, layers: usize, width: usize) -> Value {
    (0..layers)
        .flat_map(|layer| (0..width).map(move |column| (layer, column)))
        .map(|(layer, column)| {
            let before = layer.checked_sub(1).map(|before| format!("p{before}-{column}"));
            let waits: Vec<&str> = before.as_deref().into_iter().collect();
            bed.work(&format!("p{layer}-{column}"), &waits, "0.15")
        })
        .collect()
}

#[tokio::test]
async fn an_operator_killed_in_mid_run_has_a_successor_that_runs_nothing_twice() {
    let (bed, _cluster) = Bed::new("kill").await;
    let (_one, _two) = (bed.shipped_runtime("one").await, bed.runtime("two").await);
    let phases = layered(&bed, 7, 3);
    let mut operator = bed.operator();
    bed.create("boot", json!({"phases": phases, "timeouts": {"offer": "1s"}})).await;
    for ran in [4, 11] {
        bed.until_ran(ran).await;
        operator.signal(Signal::KILL);
        operator.wait(SOON).await;
        operator = bed.operator();
    }
    let status = bed.until_state("boot", "Succeeded").await;
    assert_eq!(status["progress"], "21/21");
    bed.assert_each_ran_once(&phases);
}

#[tokio::test]
async fn an_operator_told_to_end_stores_what_it_knows_and_the_next_one_goes_on() {
    let (bed, _cluster) = Bed::new("term").await;
    let _runtime = bed.runtime("one").await;
    let phases = json!([bed.work("a", &[], "0"), bed.gated("b", &["a"]), bed.work("c", &["b"], "0")]);
    let mut operator = bed.operator();
    bed.create("boot", json!({"phases": phases, "timeouts": {"offer": "1s"}})).await;
    bed.pid("b").await;
    bed.until_phase("boot", "b", "Running").await;
    operator.signal(Signal::TERM);
    assert_eq!(operator.wait(Duration::from_secs(10)).await, 0, "{}", operator.tail());
    let status = bed.status("boot").await;
    assert_eq!((phase_state(&status, "a"), phase_state(&status, "b")), ("Complete", "Running"));
    // Ends while no operator is there to hear of it.
    bed.open("b");
    bed.until_ran(2).await;
    let _operator = bed.operator();
    bed.until_state("boot", "Succeeded").await;
    bed.assert_each_ran_once(&phases);
}

#[tokio::test]
async fn a_session_whose_revision_was_removed_says_so_and_goes_on_when_it_is_back() {
    let (bed, cluster) = Bed::new("lost-revision").await;
    let _runtime = bed.runtime("one").await;
    let mut operator = bed.operator();
    bed.create("boot", json!({"phases": [bed.gated("a", &[])], "timeouts": {"offer": "1s"}})).await;
    bed.until_phase("boot", "a", "Running").await;
    operator.signal(Signal::KILL);
    operator.wait(SOON).await;
    let revisions: Api<ControllerRevision> = Api::namespaced(Client::clone(&cluster.client), &bed.namespace);
    let mut removed = revisions.list(&ListParams::default()).await.unwrap().items.remove(0);
    revisions.delete(&removed.name_any(), &DeleteParams::default()).await.unwrap();
    let edited = json!([bed.gated("a", &[]), bed.work("b", &["a"], "0")]);
    bed.edit("boot", json!({"phases": edited})).await;
    let _operator = bed.operator();
    let is_lost = |status: &Value| condition(status, "Accepted") == "False/StatusUnreadable";
    let status = bed.until("boot", "the revision is missed", is_lost).await;
    assert!(status["message"].as_str().unwrap().contains("restore its ControllerRevision"), "{status:#}");
    (removed.metadata.resource_version, removed.metadata.uid) = (None, None);
    revisions.create(&PostParams::default(), &removed).await.unwrap();
    bed.open("a");
    let status = bed.until_state("boot", "Succeeded").await;
    assert_eq!(status["revision"], 2);
    bed.assert_each_ran_once(&edited);
}

#[tokio::test]
async fn two_operators_of_one_namespace_run_nothing_twice() {
    let (bed, _cluster) = Bed::new("two").await;
    let (_one, _two) = (bed.shipped_runtime("one").await, bed.runtime("two").await);
    let phases = layered(&bed, 7, 3);
    let _operator = bed.operator();
    bed.create("boot", json!({"phases": phases, "timeouts": {"offer": "1s"}})).await;
    bed.until_ran(4).await;
    let first = bed.status("boot").await["holder"]["process"].clone();
    let _rival = bed.operator();
    let status = bed.until_state("boot", "Succeeded").await;
    assert_ne!(status["holder"]["process"], first, "the younger one took it over");
    bed.assert_each_ran_once(&phases);
}

#[tokio::test]
async fn runtimes_told_to_end_one_after_the_other_lose_nothing() {
    let (bed, _cluster) = Bed::new("roll").await;
    let phases = layered(&bed, 8, 3);
    let mut runtime = bed.shipped_runtime("first").await;
    let _operator = bed.operator();
    // No phase has a second try.
    bed.create("boot", json!({"phases": phases, "timeouts": {"offer": "1s"}})).await;
    for (name, ran) in [("second", 3), ("third", 9), ("fourth", 15)] {
        bed.until_ran(ran).await;
        let next = bed.shipped_runtime(name).await;
        runtime.signal(Signal::TERM);
        assert_eq!(runtime.wait(SOON).await, 0, "{}", runtime.tail());
        runtime = next;
    }
    let status = bed.until_state("boot", "Succeeded").await;
    assert_eq!(status["progress"], "24/24");
    bed.assert_each_ran_once(&phases);
}
