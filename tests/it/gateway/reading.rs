//! What is read: one's own writes, tags, forms of an answer, pages, and what a single phase is.

use serde_json::{Value, json};

use super::{Front, phase};

#[tokio::test]
async fn what_was_just_written_is_read_back() {
    let front = Front::new("own").await;
    for n in 0..30 {
        let plan = json!([phase(&format!("p{n}"), &[])]);
        let answer = front.call("POST", "/plan?session=s&onConflict=replace").json(&plan).send().await;
        let written: u64 = answer.header("pmp-resource-version").unwrap().parse().unwrap();
        assert_eq!(answer.code, 200, "{}", answer.text());
        let read = front.get("/plan?session=s").await;
        assert_eq!(read.expect(200)[0]["id"], format!("p{n}"));
        assert!(read.header("pmp-resource-version").unwrap().parse::<u64>().unwrap() >= written);
    }
}

#[tokio::test]
async fn what_was_written_here_and_deleted_since_is_waited_for_once_at_most() {
    let front = Front::new("deleted").await;
    front.submit("s", &json!([phase("a", &[])])).await.expect(200);
    front.api.delete("s", &kube::api::DeleteParams::default()).await.unwrap();
    // Until the cache has heard of it, it is as it was.
    crate::support::eventually(super::SOON, "it is gone", async || {
        (front.get("/status?session=s").await.code == 404).then_some(())
    })
    .await;
    let began = std::time::Instant::now();
    for _ in 0..10 {
        assert_eq!(front.get("/status?session=s").await.problem(404), "NoSuchSession");
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "ten reads took {:?}", began.elapsed());
}

#[tokio::test]
async fn labels_that_the_operator_needs_are_not_taken_away_by_a_document() {
    let front = Front::with("labels", &["--label-selector", "team=lab"]).await;
    let whole = |team: &str| {
        let meta = json!({"name": "s", "labels": {"team": team, "more": team}});
        json!({"apiVersion": "pmp.dev/v1alpha1", "kind": "PhaseManifest", "metadata": meta, "spec": {"phases": []}})
    };
    for team in ["other", "third"] {
        front.call("POST", "/plan?onConflict=attach").json(&whole(team)).send().await.expect(200);
        let labels = front.only().await.metadata.labels.unwrap();
        assert_eq!(labels["team"], "lab");
        front.until(&format!("{}_s", front.namespace), "it is done", |state| state["state"] == "Succeeded").await;
    }
}

#[tokio::test]
async fn a_status_that_is_known_is_not_sent_again() {
    let front = Front::new("tag").await;
    let _runtime = front.runtime("worker").await;
    front.submit("s", &json!([super::shell("a", &[], "true")])).await.expect(200);
    front.until_state("s", "Succeeded").await;
    let first = front.get("/status?session=s").await;
    let tag = first.header("etag").expect("a status has a tag").to_owned();
    assert_eq!(first.json()["resourceVersion"], tag.trim_matches('"'));
    for known in [tag.clone(), format!("W/{tag}"), format!("\"1\", {tag}"), "*".to_owned()] {
        let again = front.call("GET", "/state?session=s").header("If-None-Match", &known).send().await;
        assert_eq!((again.code, again.body.len()), (304, 0), "{known}");
        assert_eq!(again.header("etag"), Some(tag.as_str()));
    }
    let other = front.call("GET", "/status?session=s").header("If-None-Match", "\"1\"").send().await;
    assert_eq!(other.code, 200);
}

#[tokio::test]
async fn a_manifest_comes_in_the_form_that_is_asked_for() {
    let front = Front::new("forms-out").await;
    front.submit("s", &json!([phase("a", &[]), phase("b", &["a"])])).await.expect(200);
    let plain = front.get("/plan?session=s").await;
    let media = plain.header("content-type").unwrap().to_owned();
    assert_eq!(media, "application/vnd.phase-manifest+json; version=1.0.0");
    assert_eq!(plain.json()[1]["spec"]["waitFor"]["phases"], json!(["a"]));
    let ask = async |accept: &str| front.call("GET", "/plan?session=s").header("Accept", accept).send().await;
    assert_eq!(ask("application/json").await.header("content-type"), Some("application/json"));
    let yaml = ask("application/yaml").await;
    assert_eq!(yaml.header("content-type"), Some("application/yaml"));
    // What comes out goes in again.
    let back = front.call("POST", "/plan?session=t").body("application/yaml", yaml.body).send().await.expect(200);
    assert_eq!(back["digest"], front.get("/diff?session=s").await.expect(200)["specDigest"]);
    assert_eq!(ask("text/html").await.problem(406), "NotAcceptable");
    assert_eq!(ask("application/vnd.phase-manifest+json; version=2").await.problem(406), "NotAcceptable");
}

#[tokio::test]
async fn sessions_are_listed_page_by_page_and_none_twice() {
    let front = Front::new("pages").await;
    for n in 0..7 {
        front.submit(&format!("s{n}"), &json!([phase("a", &[])])).await.expect(200);
    }
    front.until("s6", "the cache has all", |_| true).await;
    let mut seen = Vec::new();
    let mut target = "/sessions?limit=3".to_owned();
    loop {
        let page = front.get(&target).await.expect(200);
        let names =
            page["sessions"].as_array().unwrap().iter().map(|one| one["sessionId"].as_str().unwrap().to_owned());
        let names: Vec<String> = names.collect();
        assert!(names.len() <= 3);
        seen.extend(names);
        let Some(next) = page["continue"].as_str() else { break };
        target = format!("/sessions?limit=3&continue={}", next.replace('/', "%2F"));
    }
    assert_eq!(seen, (0..7).map(|n| format!("s{n}")).collect::<Vec<_>>());
    let elsewhere = front.get("/sessions?namespace=elsewhere").await.expect(200);
    assert_eq!(elsewhere["sessions"], json!([]));
    assert_eq!(front.get("/sessions?limit=501").await.problem(400), "BadParameter");
    assert_eq!(front.get("/sessions?continue=nonsense").await.problem(400), "BadParameter");
}

#[tokio::test]
async fn a_phase_is_found_by_any_printable_id() {
    let front = Front::new("ids").await;
    let ids = ["a/b", "..", "ü", "a b", "%41", "?x=1", "#", "*", ">", "a.b.c", "\"", "status", "{id}", "🚀"];
    let phases: Vec<Value> = ids.iter().map(|id| phase(id, &[])).collect();
    front.submit("s", &phases.into()).await.expect(200);
    for id in ids {
        let encoded = percent_encoding::percent_encode(id.as_bytes(), percent_encoding::NON_ALPHANUMERIC).to_string();
        let told = front.get(&format!("/phases/{encoded}?session=s")).await.expect(200);
        assert_eq!(told["id"], id);
        assert_eq!(told["spec"], json!({}), "{id}");
    }
    for (path, code) in
        [("/phases/%00?session=s", 400), ("/phases/%FF?session=s", 400), ("/phases/nobody?session=s", 404)]
    {
        front.get(path).await.problem(code);
    }
}

#[tokio::test]
async fn a_difference_is_shown_before_anything_has_started() {
    let front = Front::new("diff").await;
    let staged = front.call("POST", "/plan?session=s&stage=true").json(&json!([phase("a", &[])]));
    staged.send().await.expect(200);
    let diff = front.get("/diff?session=s").await.expect(200);
    assert_eq!((&diff["added"], &diff["changesCount"]), (&json!(["a"]), &1.into()));
}
