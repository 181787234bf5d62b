//! Commands over HTTP: what they change in the session, and what is refused.

use serde_json::{Value, json};

use super::{Front, phase, row, shell};

#[tokio::test]
async fn one_phase_of_a_running_session_is_retried_and_another_skipped() {
    let front = Front::new("phases").await;
    let _runtime = front.runtime("worker").await;
    let mark = front.dir.join("mark");
    let flaky = format!("[ -e '{0}' ] || {{ : > '{0}'; exit 1; }}", mark.display());
    let mut failing = shell("flaky / ü*.>", &[], &flaky);
    failing["spec"]["onFailure"] = json!({"action": "continue"});
    front.submit("s", &json!([failing, front.gated("slow", &[]), front.gated("never", &["slow"])])).await.expect(200);
    front.until("s", "it failed", |state| row(state, "flaky / ü*.>")["state"] == "Failed").await;
    let id = "flaky%20%2F%20%C3%BC*.%3E";
    let told = front.post(&format!("/phases/{id}/retry?session=s")).await.expect(202);
    assert_eq!((&told["phaseId"], &told["command"]), (&"flaky / ü*.>".into(), &"x-retry".into()));
    let state = front.until("s", "it is done", |state| row(state, "flaky / ü*.>")["state"] == "Complete").await;
    assert_eq!(row(&state, "flaky / ü*.>")["run"], 2);
    assert_eq!(state["state"], "Running");
    let done = state["requests"]
        .as_array()
        .unwrap()
        .iter()
        .any(|result| result["token"] == told["token"] && result["result"] == "Done");
    assert!(done, "{state}");
    front.post("/phases/never/skip?session=s").await.expect(202);
    front.open("slow");
    let state = front.until_state("s", "Succeeded").await;
    assert_eq!(row(&state, "never")["state"], "Skipped");
    let phase = front.get(&format!("/phases/{id}?session=s")).await.expect(200);
    assert_eq!((&phase["id"], &phase["state"]), (&"flaky / ü*.>".into(), &"Complete".into()));
}

#[tokio::test]
async fn a_running_session_is_cancelled() {
    let front = Front::new("cancel").await;
    let _runtime = front.runtime("worker").await;
    front.submit("s", &json!([front.gated("a", &[]), phase("b", &["a"])])).await.expect(200);
    front.until("s", "it runs", |state| row(state, "a")["state"] == "Running").await;
    let call = front.call("POST", "/control?session=s").json(&json!({"command": "cancel"}));
    let told = call.clone().send().await.expect(202);
    assert_eq!((&told["status"], &told["command"]), (&"accepted".into(), &"cancel".into()));
    front.until_state("s", "Cancelled").await;
    assert_eq!(call.send().await.expect(202)["status"], "unchanged");
}

#[tokio::test]
async fn a_session_is_paused_and_resumed_and_says_so_at_once() {
    let front = Front::new("pause").await;
    front.submit("s", &json!([phase("a", &[])])).await.expect(200);
    for (command, suspend) in [("pause", Some(true)), ("resume", Some(false))] {
        let body = json!({"command": command});
        front.call("POST", "/control?session=s").json(&body).send().await.expect(202);
        assert_eq!(front.api.get("s").await.unwrap().spec.suspend, suspend);
    }
}

#[tokio::test]
async fn phases_are_used_and_completed_by_request() {
    let front = Front::new("use").await;
    let mut spare = phase("spare", &[]);
    spare["spec"]["instanceMode"] = "onUse".into();
    front.submit("s", &json!([phase("a", &[]), spare])).await.expect(200);
    front.until("s", "it is idle", |state| row(state, "spare")["state"] == "Idle").await;
    front.post("/phases/spare/use?session=s").await.expect(202);
    front.until("s", "it is wanted", |state| state["counts"]["wanted"] == 2).await;
    for id in ["a", "spare"] {
        front.post(&format!("/phases/{id}/complete?session=s")).await.expect(202);
    }
    front.until_state("s", "Succeeded").await;
}

#[tokio::test]
async fn what_is_no_command_is_refused_and_nothing_is_written() {
    let front = Front::new("commands").await;
    front.submit("s", &json!([phase("a", &[])])).await.expect(200);
    let bodies = [
        json!({"command": "explode"}),
        json!({"command": "x-report"}),
        json!({"command": "x-cancel", "x-phaseId": "a"}),
        json!({"command": "x-retry"}),
        json!({"command": "pause", "x-phaseId": "a"}),
        json!({}),
        json!([]),
        json!({"command": 3}),
    ];
    for body in bodies {
        let answer = front.call("POST", "/control?session=s").json(&body).send().await;
        assert_eq!(answer.problem(400), "BadCommand", "{body}");
    }
    let text = front.call("POST", "/control?session=s").body("text/plain", "pause").send().await;
    assert_eq!(text.problem(415), "UnsupportedMediaType");
    assert_eq!(front.post("/phases/nobody/retry?session=s").await.problem(404), "NoSuchPhase");
    assert_eq!(front.post("/phases/a/retry?session=nobody").await.problem(404), "NoSuchSession");
    let object = front.only().await;
    assert_eq!((object.metadata.generation, object.spec.requests), (Some(1), None));
}

#[tokio::test]
async fn a_cancelled_session_begins_anew_by_retry_and_by_restart() {
    let front = Front::new("anew").await;
    let _runtime = front.runtime("worker").await;
    front.submit("s", &json!([front.gated("a", &[])])).await.expect(200);
    for ask in ["retry", "restart"] {
        front.until("s", "it runs", |state| row(state, "a")["state"] == "Running").await;
        let say = async |body: Value| front.call("POST", "/control?session=s").json(&body).send().await;
        say(json!({"command": "cancel"})).await.expect(202);
        front.until_state("s", "Cancelled").await;
        let skip = front.post("/phases/a/skip?session=s").await;
        assert_eq!(skip.problem(409), "ShutDown", "what does not begin anew does not lift the shutdown");
        let told = match ask {
            "retry" => front.post("/phases/a/retry?session=s").await.expect(202),
            _ => say(json!({"command": "x-restart"})).await.expect(202),
        };
        let is_done = |state: &Value| {
            let mut results = state["requests"].as_array().into_iter().flatten();
            state["verdict"].is_null()
                && results.any(|result| result["token"] == told["token"] && result["result"] == "Done")
        };
        front.until("s", "it began anew", is_done).await;
    }
    front.open("a");
    front.until_state("s", "Succeeded").await;
}

#[tokio::test]
async fn requests_to_a_session_that_is_being_shut_down_are_refused() {
    let front = Front::new("draining").await;
    let _runtime = front.runtime("worker").await;
    front.submit("s", &json!([front.gated("a", &[]), phase("b", &["a"])])).await.expect(200);
    front.until("s", "it runs", |state| row(state, "a")["state"] == "Running").await;
    let patch = kube::api::Patch::Merge(json!({"spec": {"shutdown": "Drain"}}));
    front.api.patch("s", &kube::api::PatchParams::default(), &patch).await.unwrap();
    assert_eq!(front.post("/phases/a/retry?session=s").await.problem(409), "ShutDown");
    assert_eq!(front.only().await.spec.requests, None);
    front.open("a");
}

#[tokio::test]
async fn a_phase_of_what_runs_is_steered_also_while_another_plan_is_staged() {
    let front = Front::new("beside").await;
    front.submit("s", &json!([phase("x", &[]), phase("y", &[])])).await.expect(200);
    front.until("s", "it has begun", |state| state["revision"] == 1).await;
    let other = json!([phase("y", &[]), phase("z", &[])]);
    front.call("POST", "/plan?session=s&stage").json(&other).send().await.expect(200);
    for id in ["x", "y", "z"] {
        front.get(&format!("/phases/{id}?session=s")).await.expect(200);
        front.post(&format!("/phases/{id}/skip?session=s")).await.expect(202);
    }
    assert_eq!(front.post("/phases/nobody/skip?session=s").await.problem(404), "NoSuchPhase");
}

#[tokio::test]
async fn a_session_that_is_being_deleted_takes_no_command_and_one_that_is_gone_is_not_found() {
    let front = Front::new("going").await;
    front.submit("s", &json!([phase("a", &[])])).await.expect(200);
    let params = kube::api::PatchParams::default();
    let hold = |finalizers: Value| kube::api::Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
    front.api.patch("s", &params, &hold(json!(["example.com/held"]))).await.unwrap();
    front.api.delete("s", &kube::api::DeleteParams::default()).await.unwrap();
    let pause = front.call("POST", "/control?session=s").json(&json!({"command": "pause"}));
    assert_eq!(pause.clone().send().await.problem(409), "Terminating");
    assert_eq!(front.post("/phases/a/skip?session=s").await.problem(409), "Terminating");
    front.api.patch("s", &params, &hold(Value::Null)).await.unwrap();
    // From here on the cache may have it still: nobody is told that anything was written.
    assert_eq!(pause.clone().send().await.problem(404), "NoSuchSession");
    // Made anew under its name, the new one is meant.
    front.submit("s", &json!([phase("a", &[])])).await.expect(200);
    pause.send().await.expect(202);
    assert_eq!(front.only().await.spec.suspend, Some(true));
}
