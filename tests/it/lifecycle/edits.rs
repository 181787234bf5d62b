//! Edits: dry runs, staged ones, and the three update policies.

use futures::StreamExt;
use serde_json::json;

use super::bed::{Bed, condition, phase_state};

#[tokio::test]
async fn a_dry_run_says_nothing_on_the_bus_and_runs_when_it_is_none_any_more() {
    let (bed, _cluster) = Bed::new("dry-run").await;
    let _runtime = bed.runtime("one").await;
    let client = bed.nats().await;
    let mut heard = client.subscribe(bed.subject("boot", ">")).await.unwrap();
    client.flush().await.unwrap();
    let _operator = bed.operator();
    let phases = json!([bed.work("a", &[], "0"), bed.work("b", &["a"], "0")]);
    bed.create("boot", json!({"phases": phases, "dryRun": true})).await;
    let status = bed.until_state("boot", "Planned").await;
    assert_eq!(condition(&status, "Completed"), "True/Planned");
    client.flush().await.unwrap();
    assert!(futures::FutureExt::now_or_never(heard.next()).is_none(), "a dry run was published");
    bed.edit("boot", json!({"dryRun": false})).await;
    let status = bed.until_state("boot", "Succeeded").await;
    assert_eq!(status["revision"], 1);
    bed.assert_each_ran_once(&phases);
}

#[tokio::test]
async fn a_staged_edit_waits_for_its_word_to_go() {
    let (bed, _cluster) = Bed::new("staged").await;
    let _runtime = bed.runtime("one").await;
    let _operator = bed.operator();
    bed.create("boot", json!({"phases": [bed.gated("a", &[])]})).await;
    bed.pid("a").await;
    let edited = json!([bed.gated("a", &[]), bed.work("b", &["a"], "0")]);
    bed.edit("boot", json!({"phases": edited, "staged": true})).await;
    let status = bed.until_state("boot", "Staged").await;
    assert_eq!((status["revision"].as_u64(), status["counts"]["total"].as_u64()), (Some(1), Some(1)));
    bed.open("a");
    // The last revision goes on to its end.
    let status = bed.until("boot", "the old revision ends", |s| s["verdict"] == "Succeeded").await;
    assert_eq!(status["counts"]["total"], 1);
    assert_eq!(bed.order(), ["a"]);
    bed.edit("boot", json!({"staged": false})).await;
    let status = bed.until_state("boot", "Succeeded").await;
    assert_eq!((status["revision"].as_u64(), phase_state(&status, "b")), (Some(2), "Complete"));
    assert_eq!(bed.order(), ["a", "b"]);
}

#[tokio::test]
async fn merge_keeps_what_an_edit_does_not_touch() {
    let (bed, _cluster) = Bed::new("merge").await;
    let _runtime = bed.runtime("one").await;
    let _operator = bed.operator();
    let phases = json!([bed.work("a", &[], "0"), bed.gated("b", &["a"]), bed.work("c", &["b"], "0")]);
    bed.create("boot", json!({"phases": phases})).await;
    bed.pid("b").await;
    let edited = json!([bed.work("a", &[], "0"), bed.gated("b", &["a"]), bed.work("d", &["b"], "0")]);
    bed.edit("boot", json!({"phases": edited})).await;
    bed.until("boot", "the edit is taken", |s| s["revision"] == 2).await;
    bed.open("b");
    bed.until_state("boot", "Succeeded").await;
    assert_eq!(bed.order(), ["a", "b", "d"]);
}

#[tokio::test]
async fn replace_runs_all_again() {
    let (bed, _cluster) = Bed::new("replace").await;
    let _runtime = bed.runtime("one").await;
    let _operator = bed.operator();
    let phases = json!([bed.work("a", &[], "0"), bed.gated("b", &["a"])]);
    bed.create("boot", json!({"phases": phases, "updatePolicy": "Replace"})).await;
    bed.pid("b").await;
    let edited = json!([bed.work("a", &[], "0"), bed.gated("b", &["a"]), bed.work("c", &["b"], "0")]);
    bed.edit("boot", json!({"phases": edited})).await;
    bed.until("boot", "the edit is taken", |s| s["revision"] == 2).await;
    bed.open("b");
    bed.until_state("boot", "Succeeded").await;
    let ran = bed.ran();
    assert_eq!((ran["a"], ran["b"], ran["c"]), (2, 2, 1), "what ran ends unjudged, and runs again");
}

#[tokio::test]
async fn reject_refuses_an_edit_of_what_runs_and_the_policy_decides_again() {
    let (bed, _cluster) = Bed::new("reject").await;
    let _runtime = bed.runtime("one").await;
    let _operator = bed.operator();
    bed.create("boot", json!({"phases": [bed.gated("a", &[])], "updatePolicy": "Reject"})).await;
    bed.pid("a").await;
    let edited = json!([bed.gated("a", &[]), bed.work("b", &["a"], "0")]);
    bed.edit("boot", json!({"phases": edited})).await;
    let status = bed.until_state("boot", "UpdateRejected").await;
    assert_eq!(condition(&status, "Accepted"), "False/UpdateRejected");
    assert_eq!((status["revision"].as_u64(), phase_state(&status, "a")), (Some(1), "Running"));
    bed.edit("boot", json!({"updatePolicy": "Merge"})).await;
    bed.until("boot", "the edit is taken", |s| s["revision"] == 2 && s["state"] == "Running").await;
    bed.open("a");
    bed.until_state("boot", "Succeeded").await;
    assert_eq!(bed.order(), ["a", "b"]);
}

#[tokio::test]
async fn an_edit_that_was_rejected_while_it_ran_is_taken_up_after_the_verdict() {
    let (bed, _cluster) = Bed::new("reject-later").await;
    let _runtime = bed.runtime("one").await;
    let _operator = bed.operator();
    bed.create("boot", json!({"phases": [bed.gated("a", &[])], "updatePolicy": "Reject"})).await;
    bed.pid("a").await;
    let edited = json!([bed.gated("a", &[]), bed.work("b", &["a"], "0")]);
    bed.edit("boot", json!({"phases": edited})).await;
    bed.until_state("boot", "UpdateRejected").await;
    bed.open("a");
    let status = bed.until_state("boot", "Succeeded").await;
    assert_eq!((status["revision"].as_u64(), phase_state(&status, "b")), (Some(2), "Complete"));
    assert_eq!(bed.order(), ["a", "b"]);
}

#[tokio::test]
async fn a_session_goes_on_beside_an_edit_that_came_invalid_while_the_operator_was_away() {
    let (bed, _cluster) = Bed::new("away").await;
    let _runtime = bed.runtime("one").await;
    let operator = bed.operator();
    let phases = json!([bed.gated("a", &[]), bed.work("b", &["a"], "0")]);
    bed.create("boot", json!({"phases": phases})).await;
    bed.pid("a").await;
    bed.until_phase("boot", "a", "Running").await;
    drop(operator);
    bed.edit("boot", json!({"phases": [{"kind": "Phase", "id": "a", "spec": {"waitFor": ["nobody"]}}]})).await;
    let _operator = bed.operator();
    let status = bed.until_state("boot", "InvalidManifest").await;
    assert_eq!(condition(&status, "Accepted"), "False/InvalidManifest");
    bed.open("a");
    bed.until("boot", "the last revision ends", |s| s["verdict"] == "Succeeded").await;
    assert_eq!(bed.order(), ["a", "b"]);
}

#[tokio::test]
async fn a_dry_run_of_a_resource_that_has_run_forgets_nothing_and_skips_nothing() {
    let (bed, _cluster) = Bed::new("dry-again").await;
    let _runtime = bed.runtime("one").await;
    let _operator = bed.operator();
    bed.create("boot", json!({"phases": [bed.work("a", &[], "0"), bed.work("gone", &[], "0")]})).await;
    bed.until_state("boot", "Succeeded").await;
    let edited = json!([bed.work("a", &[], "0"), bed.work("b", &["a"], "0")]);
    bed.edit("boot", json!({"phases": edited, "dryRun": true})).await;
    bed.until_state("boot", "Planned").await;
    bed.edit("boot", json!({"dryRun": false})).await;
    let status = bed.until("boot", "the edit ran", |s| s["state"] == "Succeeded" && s["revision"] == 2).await;
    assert_eq!(phase_state(&status, "b"), "Complete");
    assert_eq!(bed.ran(), [("a", 1), ("b", 1), ("gone", 1)].map(|(id, n)| (id.to_owned(), n)).into());
}
