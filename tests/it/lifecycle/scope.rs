//! Several resources beside each other: waits across manifests, one session id for two, one that cannot be read, and
//! what a large one costs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use kube::api::{Patch, PatchParams, WatchEvent, WatchParams};
use serde_json::{Value, json};

use super::bed::{Bed, SOON, condition, phase_state};
use crate::support::eventually;

#[tokio::test]
async fn a_phase_may_wait_for_one_of_another_manifest() {
    let (bed, _cluster) = Bed::new("wait-for").await;
    let _runtime = bed.runtime("one").await;
    let _operator = bed.operator();
    let waiting = |id: &str| {
        let mut phase = bed.work(id, &[], "0");
        phase["spec"]["x-waitFor"] = json!([{"manifest": "first", "phase": "a"}]);
        phase
    };
    bed.create("second", json!({"phases": [bed.work("free", &[], "0"), waiting("b")]})).await;
    bed.until_phase("second", "free", "Complete").await;
    bed.create("first", json!({"phases": [bed.gated("a", &[])]})).await;
    bed.pid("a").await;
    assert_eq!(phase_state(&bed.status("second").await, "b"), "Waiting");
    bed.open("a");
    bed.until_state("second", "Succeeded").await;
    assert_eq!(bed.order(), ["free", "a", "b"]);
    // What is done already is waited for no more.
    bed.until_state("first", "Succeeded").await;
    bed.create("third", json!({"phases": [waiting("c")]})).await;
    bed.until_state("third", "Succeeded").await;
    // So is what an edit of a running manifest begins to wait for.
    bed.create("fourth", json!({"phases": [bed.gated("d", &[])]})).await;
    bed.pid("d").await;
    bed.edit("fourth", json!({"phases": [bed.gated("d", &[]), waiting("e")]})).await;
    bed.until_phase("fourth", "e", "Complete").await;
}

#[tokio::test]
async fn of_two_resources_with_one_session_id_the_older_runs_and_the_other_follows() {
    let (bed, _cluster) = Bed::new("claim").await;
    let _runtime = bed.runtime("one").await;
    let _operator = bed.operator();
    let session = format!("{}_shared", bed.namespace);
    bed.create("winner", json!({"phases": [bed.gated("a", &[])], "sessionId": session})).await;
    let child = bed.pid("a").await;
    let created = bed.api.get("winner").await.unwrap().metadata.creation_timestamp.unwrap().0;
    // Ages are counted in whole seconds.
    eventually(SOON, "the next second", async || (Timestamp::now().as_second() > created.as_second()).then_some(()))
        .await;
    bed.create("loser", json!({"phases": [bed.work("b", &[], "0")], "sessionId": session})).await;
    let status = bed.until_state("loser", "SessionTaken").await;
    assert_eq!(condition(&status, "Accepted"), "False/SessionTaken");
    bed.api.delete("winner", &kube::api::DeleteParams::default()).await.unwrap();
    bed.until_state("loser", "Succeeded").await;
    bed.until_dead(child).await;
    assert_eq!(bed.order(), ["b"]);
}

#[tokio::test]
async fn a_status_that_cannot_be_read_stops_its_own_resource_and_no_other() {
    let (bed, _cluster) = Bed::new("unreadable").await;
    let _runtime = bed.runtime("one").await;
    bed.create("broken", json!({"phases": [bed.work("a", &[], "0")]})).await;
    let status = Patch::Merge(json!({"status": {"schema": 99, "revision": 1, "state": "Running"}}));
    bed.api.patch_status("broken", &PatchParams::default(), &status).await.unwrap();
    let _operator = bed.operator();
    bed.create("sound", json!({"phases": [bed.work("b", &[], "0")]})).await;
    bed.until_state("sound", "Succeeded").await;
    let status = bed.until_state("broken", "StatusUnreadable").await;
    assert_eq!(condition(&status, "Accepted"), "False/StatusUnreadable");
    assert_eq!(bed.order(), ["b"]);
}

#[tokio::test]
async fn three_hundred_phases_cost_few_writes() {
    let (bed, _cluster) = Bed::new("large").await;
    let (_one, _two) = (bed.shipped_runtime("one").await, bed.runtime("two").await);
    let middle: Vec<String> = (0..298).map(|n| format!("m{n}")).collect();
    let mut phases = vec![bed.work("first", &[], "0")];
    phases.extend(middle.iter().map(|id| bed.work(id, &["first"], "0")));
    phases.push(bed.work("last", &middle.iter().map(String::as_str).collect::<Vec<_>>(), "0"));
    let phases = Value::Array(phases);
    let writes = Arc::new(AtomicU64::new(0));
    let mut changes = bed.api.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    let counted = Arc::clone(&writes);
    tokio::spawn(async move {
        while let Ok(Some(change)) = changes.try_next().await {
            if matches!(change, WatchEvent::Modified(_)) {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let _operator = bed.operator();
    let began = Instant::now();
    bed.create("large", json!({"phases": phases})).await;
    let status = bed.until_state("large", "Succeeded").await;
    let took = began.elapsed();
    assert_eq!(status["progress"], "300/300");
    bed.assert_each_ran_once(&phases);
    // One each 250 ms at most, and what is not to wait: the holder, the revision, the verdict.
    let bound = 8 + took.as_millis() / 250;
    let writes = u128::from(writes.load(Ordering::Relaxed));
    assert!(writes <= bound && writes < 300, "{writes} writes in {took:?}");
}
