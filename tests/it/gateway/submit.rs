//! POST /plan and POST /apply: what is stored, what is refused, and what a plan does to a session that is there.

use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::{Front, phase, shell};

#[tokio::test]
async fn a_plan_is_stored_before_it_is_answered_and_runs() {
    let front = Front::new("submit").await;
    let _runtime = front.runtime("worker").await;
    let phases = json!([shell("a", &[], "true"), shell("b", &["a"], "true")]);
    let answer = front.submit("boot", &phases).await;
    let told = answer.expect(200);
    let object = front.api.get("boot").await.expect("it is stored when it is answered");
    assert_eq!(object.spec.session_id.as_deref(), Some("boot"));
    assert_eq!(object.spec.ttl_after_finished, None, "the client named it");
    assert_eq!(answer.header("pmp-resource-version").map(str::len), object.metadata.resource_version.map(|v| v.len()));
    assert_eq!((&told["status"], &told["sessionId"]), (&"created".into(), &"boot".into()));
    assert_eq!((&told["namespace"], &told["revision"]), (&front.namespace.as_str().into(), &1.into()));
    assert_eq!((&told["phasesCount"], &told["changesCount"]), (&2.into(), &2.into()));
    assert_eq!(told["changes"]["added"], json!(["a", "b"]));
    assert_eq!(told["changes"]["edgesAdded"], json!([{"phase": "b", "waitsFor": "a"}]));
    assert_eq!(told["waves"], json!([["a"], ["b"]]));
    let state = front.until_state("boot", "Succeeded").await;
    assert_eq!(state["digest"], told["digest"]);
    assert_eq!(state["revision"], 1);
}

#[tokio::test]
async fn a_plan_without_a_session_gets_one_that_is_deleted_a_day_after_its_verdict() {
    let front = Front::new("unnamed").await;
    let told = front.call("POST", "/plan").json(&json!([phase("a", &[])])).send().await.expect(200);
    let object = front.only().await;
    assert_eq!(object.spec.session_id.as_deref(), told["sessionId"].as_str());
    assert_eq!(object.spec.ttl_after_finished.map(|ttl| ttl.to_string()).as_deref(), Some("24h"));
    let session = told["sessionId"].as_str().unwrap();
    assert_eq!(front.get(&format!("/status?session={session}")).await.expect(200)["name"], told["name"]);
    let other = front.call("POST", "/plan").json(&json!([phase("a", &[])])).send().await.expect(200);
    assert_ne!(other["sessionId"], told["sessionId"]);
}

#[tokio::test]
async fn every_mistake_of_a_manifest_is_told_at_once() {
    let front = Front::new("mistakes").await;
    let phases = json!([
        {"kind": "Phase", "id": "a", "spec": {"waitFor": ["nope"], "retry": {"maxAttempts": "many"}}},
        {"kind": "Job", "id": "b"},
        {"kind": "Phase", "id": "a"},
    ]);
    let answer = front.submit("bad", &phases).await;
    assert_eq!(answer.problem(400), "InvalidManifest");
    let errors = answer.json()["errors"].as_array().unwrap().clone();
    let reasons: Vec<&str> = errors.iter().filter_map(|error| error["reason"].as_str()).collect();
    for reason in ["UnknownDependency", "WrongKind", "DuplicateId"] {
        assert!(reasons.contains(&reason), "{reasons:?}");
    }
    assert!(errors.iter().all(|error| error["pointer"].as_str().is_some_and(|at| at.starts_with('/'))), "{errors:?}");
    assert!(front.all().await.is_empty());
    let ignoring = front.call("POST", "/plan?session=bad&ignoreOther=true");
    let mixed = json!([{"kind": "ConfigMap", "metadata": {"name": "x"}}, phase("a", &[])]);
    let told = ignoring.json(&mixed).send().await.expect(200);
    assert_eq!(told["ignored"], json!([{"pointer": "/0", "kind": "ConfigMap", "name": "x"}]));
}

#[tokio::test]
async fn every_spelling_yaml_and_a_whole_resource_are_the_same_plan() {
    let front = Front::new("forms").await;
    let canonical = front.submit("one", &json!([phase("a", &[]), phase("b", &["a"])])).await.expect(200);
    let yaml = "- Kind: Phase\n  Id: a\n- kind: Phase\n  id: b\n  Spec: {wait_for: a}\n";
    let from_yaml = front.call("POST", "/plan?session=two").body("application/yaml", yaml).send().await.expect(200);
    assert_eq!(from_yaml["digest"], canonical["digest"]);
    let whole = json!({
        "apiVersion": "pmp.dev/v1alpha1",
        "kind": "PhaseManifest",
        "metadata": {"name": "three", "labels": {"team": "lab"}},
        "spec": {"phases": [phase("a", &[]), phase("b", &["a"])], "parallelism": 1},
    });
    let from_whole = front.call("POST", "/plan").json(&whole).send().await.expect(200);
    assert_eq!(from_whole["digest"], canonical["digest"]);
    assert_eq!(from_whole["sessionId"], format!("{}_three", front.namespace));
    let object = front.api.get("three").await.unwrap();
    assert_eq!(object.spec.parallelism, Some(1));
    assert_eq!(object.metadata.labels.unwrap()["team"], "lab");
    let media = "application/vnd.phase-manifest+json; version=1.0.0";
    let four = front.call("POST", "/plan?session=four").body(media, json!([phase("a", &[])]).to_string());
    four.send().await.expect(200);
}

#[tokio::test]
async fn what_executes_is_a_conflict_until_the_client_says_what_is_to_be_done() {
    let front = Front::new("conflict").await;
    let _runtime = front.runtime("worker").await;
    let plan = json!([front.gated("a", &[])]);
    let first = front.submit("busy", &plan).await.expect(200);
    // Before the operator has looked at it, and also after.
    let same = front.submit("busy", &plan).await;
    assert_eq!(same.problem(409), "Executing");
    front.until("busy", "it runs", |state| state["state"] == "Running").await;
    let other = json!([front.gated("a", &[]), shell("b", &["a"], "true")]);
    let clash = front.submit("busy", &other).await;
    assert_eq!(clash.problem(409), "Conflicting");
    let clash = clash.json();
    assert_eq!((&clash["sessionId"], &clash["digest"]), (&"busy".into(), &first["digest"]));
    assert_eq!(clash["diff"]["added"], json!(["b"]));
    let attached = front.call("POST", "/plan?session=busy&onConflict=attach");
    assert_eq!(attached.clone().json(&plan).send().await.expect(200)["status"], "attached");
    assert_eq!(attached.json(&other).send().await.problem(409), "Conflicting");
    let replaced = front.call("POST", "/plan?session=busy&onConflict=replace").json(&other).send().await.expect(200);
    assert_eq!((&replaced["status"], &replaced["revision"]), (&"updated".into(), &2.into()));
    assert_eq!(replaced["changes"]["added"], json!(["b"]));
    front.open("a");
    let state = front.until_state("busy", "Succeeded").await;
    assert_eq!(state["revision"], 2);
}

#[tokio::test]
async fn a_finished_session_runs_the_same_plan_again_and_another_as_its_next_revision() {
    let front = Front::new("again").await;
    let _runtime = front.runtime("worker").await;
    let ran = front.dir.join("ran");
    let line = format!("echo x >> '{}'", ran.display());
    let plan = json!([shell("a", &[], &line)]);
    front.submit("again", &plan).await.expect(200);
    front.until_state("again", "Succeeded").await;
    let told = front.submit("again", &plan).await.expect(200);
    assert_eq!((&told["status"], &told["revision"]), (&"restarted".into(), &1.into()));
    let is_again = |state: &serde_json::Value| state["state"] == "Succeeded" && super::row(state, "a")["run"] == 2;
    front.until("again", "it ran again", is_again).await;
    assert_eq!(std::fs::read_to_string(&ran).unwrap().lines().count(), 2);
    let told = front.submit("again", &json!([shell("a", &[], &line), phase("b", &["a"])])).await.expect(200);
    assert_eq!((&told["status"], &told["revision"], &told["changesCount"]), (&"updated".into(), &2.into(), &1.into()));
}

/// Its phase `a`, once the session has ended well after so many runs of it.
async fn ran(front: &Front, session: &str, run: u64) {
    let is_so = |state: &serde_json::Value| state["state"] == "Succeeded" && super::row(state, "a")["run"] == run;
    front.until(session, &format!("it ran for the {run}. time"), is_so).await;
}

#[tokio::test]
async fn a_finished_plan_runs_again_whatever_was_staged_or_planned_since() {
    let front = Front::new("held").await;
    let _runtime = front.runtime("worker").await;
    let plan = json!([shell("a", &[], "true")]);
    let other = json!([shell("a", &[], "true"), shell("b", &["a"], "true")]);
    front.submit("s", &plan).await.expect(200);
    ran(&front, "s", 1).await;
    let mut run = 1;
    for (mode, held) in [("stage", &plan), ("stage", &other), ("dryRun", &plan), ("dryRun", &other)] {
        front.call("POST", &format!("/plan?session=s&{mode}")).json(held).send().await.expect(200);
        if mode == "dryRun" {
            front.until("s", "it is planned", |state| state["verdict"] == "Planned").await;
        }
        let told = front.submit("s", &plan).await.expect(200);
        assert_eq!((&told["status"], &told["revision"]), (&"restarted".into(), &1.into()), "{mode}");
        run += 1;
        ran(&front, "s", run).await;
    }
    // Applied, it is the same.
    let staged = front.call("POST", "/plan?session=s&stage").json(&plan).send().await.expect(200);
    let apply = format!("/apply?session=s&digest={}", staged["digest"].as_str().unwrap());
    let told = front.post(&apply).await.expect(200);
    assert_eq!(
        (&told["status"], &told["revision"], &told["changesCount"]),
        (&"restarted".into(), &1.into(), &0.into())
    );
    ran(&front, "s", run + 1).await;
    assert_eq!(front.post(&apply).await.expect(200)["status"], "unchanged", "a repeat does no harm");
}

#[tokio::test]
async fn settings_of_what_executes_are_written_or_refused_and_never_dropped() {
    let front = Front::new("settings").await;
    let whole = |spec: serde_json::Value| {
        let mut spec = spec;
        spec["phases"] = json!([phase("a", &[])]);
        let meta = json!({"name": "s"});
        json!({"apiVersion": "pmp.dev/v1alpha1", "kind": "PhaseManifest", "metadata": meta, "spec": spec})
    };
    let post = async |on: &str, spec: serde_json::Value| {
        front.call("POST", &format!("/plan?{on}")).json(&whole(spec)).send().await
    };
    post("", json!({"parallelism": 1})).await.expect(200);
    let session = format!("{}_s", front.namespace);
    front.until(&session, "it has begun", |state| state["revision"] == 1).await;
    for on in ["", "onConflict=attach"] {
        let refused = post(on, json!({"parallelism": 2})).await;
        assert_eq!(refused.problem(409), "Conflicting");
        assert!(refused.json()["detail"].as_str().unwrap().contains("other settings"), "{}", refused.text());
    }
    let attached = post("onConflict=attach", json!({"parallelism": 1, "suspend": false})).await.expect(200);
    assert_eq!(attached["status"], "attached", "what is written differs, and says the same");
    let told = post("onConflict=replace", json!({"parallelism": 2, "failurePolicy": "Isolate"})).await.expect(200);
    assert_eq!((&told["status"], &told["revision"]), (&"updated".into(), &1.into()), "settings make no revision");
    let spec = front.only().await.spec;
    assert_eq!(spec.parallelism, Some(2));
    let told = post("onConflict=replace", json!({"parallelism": 2, "failurePolicy": "Isolate"})).await.expect(200);
    assert_eq!(told["status"], "attached");
}

#[tokio::test]
async fn a_resource_that_was_exported_brings_no_old_requests_and_no_old_memory() {
    let front = Front::new("exported").await;
    front.submit("s", &json!([phase("a", &[]), phase("b", &[])])).await.expect(200);
    let skip = front.call("POST", "/phases/a/skip?session=s").header("Idempotency-Key", "k");
    skip.send().await.expect(202);
    front.until("s", "it is skipped", |state| super::row(state, "a")["state"] == "Skipped").await;
    let exported = serde_json::to_value(front.only().await).unwrap();
    assert!(exported.to_string().contains("pmp.dev/idempotency-keys"));
    front.post("/phases/b/skip?session=s").await.expect(202);
    front.until_state("s", "Succeeded").await;
    let before = front.only().await;
    let told = front.call("POST", "/plan").json(&exported).send().await.expect(200);
    assert_eq!(told["status"], "restarted");
    let after = front.only().await;
    let memory = |object: &pmp::resource::PhaseManifest| {
        let mut all = object.metadata.annotations.clone().unwrap_or_default();
        all.retain(|name, _| name.starts_with("pmp.dev/"));
        all
    };
    assert_eq!(memory(&after), memory(&before));
    let actions: Vec<_> = after.spec.requests.unwrap().into_iter().map(|request| request.action).collect();
    assert_eq!(actions, [pmp::resource::RequestAction::Restart]);
}

#[tokio::test]
async fn a_cancelled_session_is_revived_by_a_plan() {
    let front = Front::new("revived").await;
    front.submit("off", &json!([phase("a", &[])])).await.expect(200);
    let cancel = front.call("POST", "/control?session=off").json(&json!({"command": "cancel"})).send().await;
    cancel.expect(202);
    front.until_state("off", "Cancelled").await;
    let told = front.submit("off", &json!([phase("a", &[]), phase("b", &[])])).await.expect(200);
    assert_eq!(told["status"], "updated");
    front.until("off", "it goes on", |state| state["revision"] == 2 && state["verdict"].is_null()).await;
}

#[tokio::test]
async fn a_staged_plan_shows_its_difference_and_runs_when_it_is_applied() {
    let front = Front::new("staged").await;
    let _runtime = front.runtime("worker").await;
    front.submit("plan", &json!([shell("a", &[], "true")])).await.expect(200);
    front.until_state("plan", "Succeeded").await;
    let next = json!([shell("a", &[], "true"), shell("b", &["a"], "true")]);
    let staged = front.call("POST", "/plan?session=plan&stage=true").json(&next).send().await.expect(200);
    assert_eq!((&staged["status"], &staged["revision"]), (&"staged".into(), &serde_json::Value::Null));
    let diff = front.get("/diff?session=plan").await.expect(200);
    assert_eq!((&diff["added"], &diff["specDigest"]), (&json!(["b"]), &staged["digest"]));
    let wrong = format!("sha256:{}", "0".repeat(64));
    let refused = front.post(&format!("/apply?session=plan&digest={wrong}")).await;
    assert_eq!(refused.problem(409), "DigestMismatch");
    let digest = staged["digest"].as_str().unwrap();
    let applied = front.post(&format!("/apply?session=plan&digest={digest}")).await.expect(200);
    assert_eq!((&applied["status"], &applied["revision"]), (&"applied".into(), &2.into()));
    let again = front.post(&format!("/apply?session=plan&digest={digest}")).await.expect(200);
    assert_eq!(again["status"], "unchanged", "a repeat does no harm");
    front.until("plan", "it ran", |state| state["revision"] == 2 && state["state"] == "Succeeded").await;
    assert_eq!(front.post("/apply?session=plan").await.problem(409), "NothingStaged");
}

#[tokio::test]
async fn a_dry_run_plans_and_runs_nothing() {
    let front = Front::new("dry").await;
    let told = front.call("POST", "/plan?session=dry&dryRun").json(&json!([phase("a", &[])])).send().await.expect(200);
    assert_eq!((&told["status"], &told["waves"]), (&"planned".into(), &json!([["a"]])));
    let state = front.until("dry", "it is planned", |state| state["verdict"] == "Planned").await;
    assert_eq!(state["revision"], serde_json::Value::Null);
    let told = front.submit("dry", &json!([phase("a", &[])])).await.expect(200);
    assert_eq!((&told["status"], &told["revision"]), (&"updated".into(), &1.into()));
    front.until("dry", "it runs", |state| state["revision"] == 1).await;
}

#[tokio::test]
async fn sessions_whose_names_are_alike_have_resources_of_their_own() {
    let front = Front::new("alike").await;
    for session in ["boot", "Boot", "BOOT", "b_o_o_t", "-boot-"] {
        let told = front.submit(session, &json!([phase(session, &[])])).await.expect(200);
        assert_eq!(told["sessionId"], session);
    }
    assert_eq!(front.all().await.len(), 5);
    for session in ["boot", "Boot", "BOOT", "b_o_o_t", "-boot-"] {
        let plan = front.get(&format!("/plan?session={session}")).await.expect(200);
        assert_eq!(plan[0]["id"], session);
    }
}

#[tokio::test]
async fn a_session_made_with_kubectl_is_the_same_over_http() {
    let front = Front::new("kubectl").await;
    let told = front.submit(&format!("{}_boot", front.namespace), &json!([phase("a", &[])])).await.expect(200);
    assert_eq!(told["name"], "boot");
    let patch = Patch::Merge(json!({"spec": {"suspend": true}}));
    front.api.patch("boot", &PatchParams::default(), &patch).await.unwrap();
    front.until(&format!("{}_boot", front.namespace), "it is suspended", |state| state["state"] == "Suspended").await;
}

#[tokio::test]
async fn what_the_api_server_refuses_is_the_client_s_mistake() {
    let front = Front::new("refused").await;
    let whole = |spec: serde_json::Value| {
        let meta = json!({"name": "odd"});
        json!({"apiVersion": "pmp.dev/v1alpha1", "kind": "PhaseManifest", "metadata": meta, "spec": spec})
    };
    for spec in [
        json!({"phases": [], "parallelism": -1}),
        json!({"phases": [], "strategy": "Chaotic"}),
        json!({"phases": [], "parallelism": "three"}),
        json!({"phases": [], "unknown": 1}),
        json!({"phases": [], "connection": "NOT LEGAL"}),
        json!({"phases": [], "targetPhase": "nobody"}),
    ] {
        let answer = front.call("POST", "/plan").json(&whole(spec.clone())).send().await;
        assert_eq!(answer.code, 400, "{spec}: {}", answer.text());
    }
    assert!(front.all().await.is_empty());
}
