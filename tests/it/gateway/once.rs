//! Idempotency keys: a request that is repeated is carried out once, and answered alike, whatever happened in between.

use serde_json::json;

use super::{Front, SOON, client::Answer, phase, shell};
use crate::support::eventually;

fn body(answer: &Answer) -> String {
    assert_eq!(answer.code, 200, "{}", answer.text());
    answer.text()
}

#[tokio::test]
async fn the_same_request_twice_is_one_session_and_one_answer() {
    let front = Front::new("once").await;
    let call = front.call("POST", "/plan").header("Idempotency-Key", "k-1").json(&json!([phase("a", &[])]));
    let first = call.clone().send().await;
    let second = call.send().await;
    assert_eq!(body(&first), body(&second));
    assert_eq!((first.header("idempotency-replayed"), second.header("idempotency-replayed")), (None, Some("true")));
    let object = front.only().await;
    assert_eq!(object.metadata.generation, Some(1));
}

#[tokio::test]
async fn a_first_answer_that_was_lost_is_given_to_the_second_request() {
    let front = Front::new("lost").await;
    for (key, target) in [("create", "/plan?session=s"), ("edit", "/plan?session=s&onConflict=replace")] {
        let plan = json!([phase(key, &[])]);
        let call = front.call("POST", target).header("Idempotency-Key", key).json(&plan);
        // The connection is gone before anybody reads the answer, and what was asked for happens all the same.
        let lost = call.open().await;
        eventually(SOON, "it is stored", async || {
            let object = front.api.get_opt("s").await.unwrap()?;
            (object.spec.phases?.values()[0]["id"] == key).then_some(())
        })
        .await;
        drop(lost);
        let generation = front.only().await.metadata.generation;
        let second = call.clone().send().await;
        let third = call.send().await;
        assert_eq!(body(&second), body(&third));
        assert_eq!(second.header("idempotency-replayed"), Some("true"));
        assert_eq!(front.only().await.metadata.generation, generation);
    }
}

#[tokio::test]
async fn a_request_that_was_cut_off_anywhere_is_carried_out_once() {
    let front = Front::new("cut").await;
    for n in 0..20_u64 {
        let call = front.call("POST", "/plan").header("Idempotency-Key", &format!("k-{n}"));
        let call = call.json(&json!([phase("a", &[])]));
        let lost = call.open().await;
        // Cut off earlier and later, from before the write to after it.
        tokio::time::sleep(std::time::Duration::from_micros(500 * n)).await;
        drop(lost);
        let first = body(&call.clone().send().await);
        assert_eq!(body(&call.send().await), first);
    }
    let all = front.all().await;
    assert_eq!(all.len(), 20);
    assert!(all.iter().all(|object| object.metadata.generation == Some(1)));
}

#[tokio::test]
async fn a_repeat_after_the_verdict_does_not_run_the_plan_again() {
    let front = Front::new("late").await;
    let _runtime = front.runtime("worker").await;
    let plan = json!([shell("a", &[], "true")]);
    let call = front.call("POST", "/plan?session=s").header("Idempotency-Key", "k").json(&plan);
    let first = call.clone().send().await;
    let attach = front.call("POST", "/plan?session=s&onConflict=attach").header("Idempotency-Key", "a").json(&plan);
    let attached = attach.clone().send().await;
    front.until_state("s", "Succeeded").await;
    assert_eq!(body(&call.send().await), body(&first));
    assert_eq!(body(&attach.send().await), body(&attached));
    let state = front.get("/status?session=s").await.expect(200);
    assert_eq!((&state["state"], &super::row(&state, "a")["run"]), (&"Succeeded".into(), &1.into()));
}

#[tokio::test]
async fn a_key_with_another_body_or_other_parameters_is_a_conflict() {
    let front = Front::new("reused").await;
    let call = |target: &str, id: &str| {
        front.call("POST", target).header("Idempotency-Key", "k").json(&json!([phase(id, &[])])).send()
    };
    call("/plan?session=s", "a").await.expect(200);
    assert_eq!(call("/plan?session=s", "b").await.problem(409), "IdempotencyKeyReused");
    assert_eq!(call("/plan?session=s&onConflict=attach", "a").await.problem(409), "IdempotencyKeyReused");
    let odd = front.call("POST", "/plan").header("Idempotency-Key", "").json(&json!([]));
    assert_eq!(odd.send().await.problem(400), "BadIdempotencyKey");
}

#[tokio::test]
async fn ten_at_once_with_one_key_are_one_session() {
    let front = Front::new("crowd").await;
    let call = front.call("POST", "/plan").header("Idempotency-Key", "k").json(&json!([phase("a", &[])]));
    let answers = futures::future::join_all((0..10).map(|_| call.clone().send())).await;
    let first = body(&answers[0]);
    assert!(answers.iter().all(|answer| body(answer) == first));
    front.only().await;
}

#[tokio::test]
async fn a_request_about_a_phase_is_made_once_a_key() {
    let front = Front::new("asked").await;
    front.submit("s", &json!([phase("a", &[])])).await.expect(200);
    let call = front.call("POST", "/phases/a/skip?session=s").header("Idempotency-Key", "k");
    let first = call.clone().send().await.expect(202);
    let second = call.send().await.expect(202);
    assert_eq!(first["token"], second["token"]);
    assert_eq!(front.only().await.spec.requests.unwrap().len(), 1);
}

/// What a repeat is to have in common with the first answer, and the key's memory with it.
fn accepted(answer: &Answer) -> (String, Option<String>) {
    assert_eq!(answer.code, 202, "{}", answer.text());
    (answer.text(), answer.header("idempotency-replayed").map(str::to_owned))
}

#[tokio::test]
async fn a_command_is_given_once_a_key_also_after_others_came_in_between() {
    let front = Front::new("commands-once").await;
    front.submit("s", &json!([phase("a", &[]), phase("b", &[]), phase("c", &[])])).await.expect(200);
    front.until("s", "it has begun", |state| state["revision"] == 1).await;
    let control = |key: &str, command: &str| {
        let call = front.call("POST", "/control?session=s").header("Idempotency-Key", key);
        call.json(&json!({"command": command}))
    };
    let skip = front.call("POST", "/phases/a/skip?session=s").header("Idempotency-Key", "skip");
    let (first, replayed) = accepted(&skip.clone().send().await);
    assert_eq!(replayed, None);
    let (paused, _) = accepted(&control("pause", "pause").send().await);
    let (unchanged, _) = accepted(&control("again", "pause").send().await);
    assert!(unchanged.contains("unchanged"), "{unchanged}");
    front.until("s", "it is skipped", |state| super::row(state, "a")["state"] == "Skipped").await;
    // The next request lets go of the first one's token, and another command takes the pause back.
    accepted(&front.post("/phases/b/skip?session=s").await);
    accepted(&control("resume", "resume").send().await);
    let before = front.only().await;
    let again = Some("true".to_owned());
    assert_eq!(accepted(&skip.send().await), (first, again.clone()));
    assert_eq!(accepted(&control("pause", "pause").send().await), (paused, again.clone()));
    assert_eq!(accepted(&control("again", "pause").send().await), (unchanged, again));
    let after = front.only().await;
    assert_eq!(after.metadata.generation, before.metadata.generation, "nothing was done again");
    assert_eq!(after.spec.suspend, Some(false));
}

#[tokio::test]
async fn a_key_that_was_used_for_something_else_is_a_conflict_everywhere() {
    let front = Front::new("commands-reused").await;
    let plan = json!([phase("a", &[]), phase("b", &[])]);
    let keyed = |target: &str| front.call("POST", target).header("Idempotency-Key", "k");
    front.submit("s", &plan).await.expect(200);
    keyed("/phases/a/skip?session=s").send().await.expect(202);
    let generation = front.only().await.metadata.generation;
    for target in ["/phases/b/skip?session=s", "/phases/a/retry?session=s"] {
        assert_eq!(keyed(target).send().await.problem(409), "IdempotencyKeyReused", "{target}");
    }
    let cancel = keyed("/control?session=s").json(&json!({"command": "cancel"}));
    assert_eq!(cancel.send().await.problem(409), "IdempotencyKeyReused");
    let submit = keyed("/plan?session=s&onConflict=replace").json(&plan);
    assert_eq!(submit.send().await.problem(409), "IdempotencyKeyReused");
    assert_eq!(front.only().await.metadata.generation, generation);
}
