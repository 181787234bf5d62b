//! What people and clients ask of a session: suspend, shutdown, requests, deletion, commands and questions on the bus.

use std::time::Duration;

use kube::ResourceExt;
use serde_json::{Value, json};

use super::bed::{Bed, SOON, condition, phase_state};
use crate::support::eventually;

#[tokio::test]
async fn suspend_lets_end_what_runs_and_starts_nothing_new() {
    let (bed, cluster) = Bed::new("suspend").await;
    let _runtime = bed.runtime("one").await;
    let _operator = bed.operator();
    let phases = json!([bed.gated("a", &[]), bed.work("b", &["a"], "0")]);
    bed.create("boot", json!({"phases": phases})).await;
    bed.pid("a").await;
    let patch = async |spec: &str| {
        let arguments = ["-n", &bed.namespace, "patch", "pm", "boot", "--type=merge", "-p", spec];
        let patched = cluster.kubectl(&arguments).await;
        assert!(patched.status.success(), "{patched:?}");
    };
    patch(r#"{"spec":{"suspend":true}}"#).await;
    bed.until_state("boot", "Suspended").await;
    bed.open("a");
    // The step that makes a Complete is the one that would have offered b.
    let status = bed.until_phase("boot", "a", "Complete").await;
    assert_eq!((status["state"].as_str(), phase_state(&status, "b")), (Some("Suspended"), "Waiting"));
    patch(r#"{"spec":{"suspend":false}}"#).await;
    bed.until_state("boot", "Succeeded").await;
    assert_eq!(bed.order(), ["a", "b"]);
}

#[tokio::test]
async fn drain_lets_end_what_runs_and_cancels_the_rest() {
    let (bed, _cluster) = Bed::new("drain").await;
    let _runtime = bed.runtime("one").await;
    let _operator = bed.operator();
    bed.create("boot", json!({"phases": [bed.gated("a", &[]), bed.work("b", &["a"], "0")]})).await;
    bed.pid("a").await;
    bed.edit("boot", json!({"shutdown": "Drain"})).await;
    bed.until_state("boot", "Stopping").await;
    bed.open("a");
    let status = bed.until_state("boot", "Cancelled").await;
    assert_eq!((phase_state(&status, "a"), phase_state(&status, "b")), ("Complete", "Cancelled"));
    assert_eq!(condition(&status, "Completed"), "True/Cancelled");
    assert_eq!(bed.order(), ["a"]);
}

#[tokio::test]
async fn cancel_stops_the_children_too() {
    let (bed, _cluster) = Bed::new("cancel").await;
    let _runtime = bed.shipped_runtime("one").await;
    let _operator = bed.operator();
    bed.create("boot", json!({"phases": [bed.gated("a", &[]), bed.work("b", &["a"], "0")]})).await;
    let child = bed.pid("a").await;
    bed.edit("boot", json!({"shutdown": "Cancel"})).await;
    let status = bed.until_state("boot", "Cancelled").await;
    assert_eq!((phase_state(&status, "a"), phase_state(&status, "b")), ("Cancelled", "Cancelled"));
    bed.until_dead(child).await;
    assert!(bed.order().is_empty());
}

#[tokio::test]
async fn deleting_the_resource_returns_at_once_and_stops_the_children() {
    let (bed, cluster) = Bed::new("delete").await;
    let _runtime = bed.shipped_runtime("one").await;
    let _operator = bed.operator();
    bed.create("boot", json!({"phases": [bed.gated("a", &[]), bed.work("b", &["a"], "0")]})).await;
    let child = bed.pid("a").await;
    let arguments = ["-n", &bed.namespace, "delete", "pm", "boot", "--timeout=10s"];
    let deleted = cluster.kubectl(&arguments).await;
    assert!(deleted.status.success(), "{deleted:?}");
    assert!(bed.api.get_opt("boot").await.unwrap().is_none());
    bed.until_dead(child).await;
    assert!(bed.order().is_empty());
}

fn result<'a>(status: &'a Value, token: &str) -> &'a str {
    let results = status["requests"].as_array().into_iter().flatten();
    results.into_iter().find(|request| request["token"] == token).and_then(|r| r["result"].as_str()).unwrap_or("")
}

#[tokio::test]
async fn requests_retry_use_and_restart_and_say_what_became_of_them() {
    let (bed, _cluster) = Bed::new("requests").await;
    let _runtime = bed.runtime("one").await;
    let _operator = bed.operator();
    let mut on_use = bed.work("u", &[], "0");
    on_use["spec"]["instanceMode"] = json!("onUse");
    let fragile = bed.shell("a", &[], "[ -e $DIR/gate-a ] && echo a >> $DIR/ran");
    bed.create("boot", json!({"phases": [fragile, bed.work("b", &["a"], "0"), on_use]})).await;
    let status = bed.until_state("boot", "Failed").await;
    assert_eq!((phase_state(&status, "a"), phase_state(&status, "b")), ("Failed", "UpstreamFailed"));

    bed.open("a");
    let retry = json!({"token": "r1", "action": "Retry", "phase": "a"});
    let wrong = json!({"token": "r2", "action": "Retry", "phase": "nobody"});
    bed.edit("boot", json!({"requests": [wrong, retry]})).await;
    let status = bed.until_state("boot", "Succeeded").await;
    assert_eq!((result(&status, "r1"), result(&status, "r2")), ("Done", "Refused"), "{status:#}");
    assert_eq!(bed.order(), ["a", "b"]);

    bed.edit("boot", json!({"requests": [{"token": "u1", "action": "Use", "phase": "u"}]})).await;
    bed.until_ran(3).await;
    let status =
        bed.until("boot", "u is done", |s| phase_state(s, "u") == "Complete" && s["verdict"] == "Succeeded").await;
    assert_eq!((result(&status, "u1"), result(&status, "r1")), ("Done", ""), "a token gone from spec has no result");
    assert_eq!(bed.order(), ["a", "b", "u"]);

    bed.edit("boot", json!({"requests": [{"token": "again", "action": "Restart"}]})).await;
    bed.until("boot", "all ran again", |s| result(s, "again") == "Done" && s["verdict"] == "Succeeded").await;
    assert_eq!((bed.ran()["a"], bed.ran()["b"]), (2, 2));

    bed.edit("boot", json!({"requests": null})).await;
    let status = bed.until("boot", "no result is left", |s| s["requests"].as_array().is_none_or(Vec::is_empty)).await;
    assert_eq!(status["state"], "Succeeded");
}

#[tokio::test]
async fn held_phases_go_on_by_skip_and_complete() {
    let (bed, _cluster) = Bed::new("held").await;
    let _runtime = bed.runtime("one").await;
    let _operator = bed.operator();
    let held = |id: &str| {
        let mut phase = bed.shell(id, &[], "exit 3");
        phase["spec"]["x-onExhausted"] = json!("Hold");
        phase
    };
    let phases = json!([held("s"), held("c"), bed.work("after", &["s", "c"], "0")]);
    bed.create("boot", json!({"phases": phases})).await;
    let status = bed.until("boot", "both are held", |s| s["counts"]["held"] == 2 && s["state"] == "Held").await;
    assert_eq!(condition(&status, "Stalled"), "True/Held");
    let skip = json!({"token": "1", "action": "Skip", "phase": "s"});
    let complete = json!({"token": "2", "action": "Complete", "phase": "c"});
    bed.edit("boot", json!({"requests": [skip, complete]})).await;
    let status = bed.until_state("boot", "Succeeded").await;
    assert_eq!((phase_state(&status, "s"), phase_state(&status, "c")), ("Skipped", "Complete"));
    assert_eq!(bed.order(), ["after"]);
}

#[tokio::test]
async fn commands_of_a_client_on_the_bus_become_spec() {
    let (bed, _cluster) = Bed::new("commands").await;
    let _runtime = bed.runtime("one").await;
    let _operator = bed.operator();
    let fragile = bed.shell("b", &["a"], "[ -e $DIR/gate-b ] && echo b >> $DIR/ran");
    bed.create("boot", json!({"phases": [bed.gated("a", &[]), fragile]})).await;
    bed.pid("a").await;
    let client = bed.nats().await;
    let say = async |body: Value| {
        client.publish(bed.subject("boot", "control"), body.to_string().into()).await.unwrap();
        client.flush().await.unwrap();
    };
    say(json!({"command": "pause"})).await;
    bed.until_state("boot", "Suspended").await;
    assert_eq!(bed.api.get("boot").await.unwrap().spec.suspend, Some(true));
    say(json!({"command": "resume"})).await;
    bed.until_state("boot", "Running").await;
    bed.open("a");
    bed.until_state("boot", "Failed").await;
    bed.open("b");
    say(json!({"command": "x-retry", "x-phaseId": "b"})).await;
    bed.until_state("boot", "Succeeded").await;
    let object = bed.api.get("boot").await.unwrap();
    assert_eq!(object.spec.requests.as_ref().map(Vec::len), Some(1));
    assert!(object.annotations()["pmp.dev/last-command"].contains("x-retry"));

    bed.create("other", json!({"phases": [bed.gated("long", &[])]})).await;
    let child = bed.pid("long").await;
    let cancel = json!({"command": "cancel"}).to_string();
    client.publish(bed.subject("other", "control"), cancel.into()).await.unwrap();
    bed.until_state("other", "Cancelled").await;
    bed.until_dead(child).await;
}

#[tokio::test]
async fn state_and_difference_are_answered_while_a_session_runs_and_after() {
    let (bed, _cluster) = Bed::new("questions").await;
    let _runtime = bed.runtime("one").await;
    let _operator = bed.operator();
    bed.create("boot", json!({"phases": [bed.gated("a", &[]), bed.work("b", &["a"], "0")]})).await;
    bed.until_phase("boot", "a", "Running").await;
    let client = bed.nats().await;
    let ask = async |channel: &str| -> Option<Value> {
        let request = client.request(bed.subject("boot", channel), "{}".into());
        let answer = tokio::time::timeout(Duration::from_secs(5), request).await.ok()?.ok()?;
        serde_json::from_slice(&answer.payload).ok()
    };
    let running = eventually(SOON, "the running state is told", async || {
        ask("get_state").await.filter(|answer| phase_state(answer, "a") == "Running")
    })
    .await;
    assert_eq!(running["sessionId"], bed.session("boot"));
    assert_eq!(phase_state(&running, "b"), "Waiting");
    bed.open("a");
    bed.until_state("boot", "Succeeded").await;
    eventually(SOON, "the last state is told", async || {
        ask("get_state").await.filter(|answer| answer["verdict"] == "Succeeded")
    })
    .await;
    let same = eventually(SOON, "the difference is told", async || ask("diff").await).await;
    assert_eq!(same["changesCount"], 0, "{same}");
    let phases = json!([bed.gated("a", &[]), bed.work("b", &["a"], "0.1")]);
    bed.edit("boot", json!({"phases": phases, "staged": true})).await;
    bed.until_state("boot", "Staged").await;
    let edited = eventually(SOON, "the staged difference is told", async || {
        ask("diff").await.filter(|answer| answer["changesCount"] == 1)
    })
    .await;
    assert_eq!(edited["rerun"], json!(["b"]));
}
