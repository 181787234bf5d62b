//! The parts around the reconciler on the real API server: what a spec is accepted as, revisions, Events, commands.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::ConfigMap, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use pmp::{
    controller::{
        accept::{Accepted, accept},
        commands::{CommandId, LAST_COMMAND_ANNOTATION, Obeyed, obey},
        events::{CONTROLLER, Events, SessionEvents, regarding},
        labels::{LabelRules, put_labels},
        revision,
    },
    engine::{Input, OffersGate, Output, Report, ReportStatus, RetryAdvice, Session, Settings, Strategy, Verdict},
    manifest::{OtherKinds, PhaseId, Plan, from_values},
    protocol::{Command, ControlMessage},
    resource::{PhaseManifest, Refusal, RequestAction, Shutdown},
    sessions::Clock,
};
use serde_json::{Value, json};

use super::resource::cluster;

const SOON: Duration = Duration::from_secs(30);

async fn made(client: &Client, namespace: &str, name: &str, spec: Value) -> PhaseManifest {
    let object = json!({
        "apiVersion": "pmp.dev/v1alpha1",
        "kind": "PhaseManifest",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    });
    let api: Api<PhaseManifest> = Api::namespaced(client.clone(), namespace);
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
}

async fn read(client: &Client, object: &PhaseManifest) -> PhaseManifest {
    let api: Api<PhaseManifest> = Api::namespaced(client.clone(), object.metadata.namespace.as_deref().unwrap());
    api.get(object.metadata.name.as_deref().unwrap()).await.unwrap()
}

async fn with_status(client: &Client, object: &PhaseManifest, status: Value) -> PhaseManifest {
    let api: Api<PhaseManifest> = Api::namespaced(client.clone(), object.metadata.namespace.as_deref().unwrap());
    let patch = Patch::Merge(json!({"status": status}));
    api.patch_status(object.metadata.name.as_deref().unwrap(), &PatchParams::default(), &patch).await.unwrap()
}

fn phases(ids: &[&str]) -> Value {
    ids.iter().map(|id| json!({"kind": "Phase", "id": id, "spec": {}})).collect()
}

fn plan(phases: &Value) -> Plan {
    from_values(phases.as_array().unwrap(), OtherKinds::Refuse).unwrap().0
}

/// A manifest that gzip cannot bring below the bound of a revision.
fn noisy() -> Value {
    let mut bits = 1_u64;
    let mut word = || {
        // Any full-period generator does: this is Knuth's MMIX.
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{bits:016x}")
    };
    let phase = |n: usize| {
        let noise: String = (0..16).map(|_| word()).collect();
        json!({"kind": "Phase", "id": format!("p{n}"), "spec": {"x-noise": noise}})
    };
    (0..2500).map(phase).collect()
}

async fn accepted(client: &Client, object: &PhaseManifest) -> Result<Accepted, (Refusal, String)> {
    accept(client, object).await.expect("the API server answers")
}

#[tokio::test]
async fn a_legal_spec_is_accepted_with_its_defaults() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("accept").await;
    let object = made(&cluster.client, &namespace, "boot", json!({"phases": phases(&["a", "b"])})).await;
    let accepted = accepted(&cluster.client, &object).await.unwrap();
    assert_eq!(accepted.plan.len(), 2);
    assert_eq!(accepted.session_id.as_str(), format!("{namespace}_boot"));
    assert_eq!((accepted.connection.as_str(), accepted.revision_history_limit), ("default", 10));
    assert!(!accepted.staged && !accepted.dry_run && accepted.ttl_after_finished.is_none());
}

#[tokio::test]
async fn all_that_is_wrong_with_a_spec_is_told_at_once() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("refuse").await;
    let spec = json!({
        "phases": [{"kind": "Phase", "id": "a", "spec": {"waitFor": ["nobody"]}}, {"kind": "Job", "id": "b"}],
        "timeouts": {"offer": "0s"},
    });
    let object = made(&cluster.client, &namespace, "boot", spec).await;
    let (refusal, message) = accepted(&cluster.client, &object).await.unwrap_err();
    assert_eq!(refusal, Refusal::InvalidManifest);
    for pointer in ["/spec/timeouts/offer", "/spec/phases/0/spec/waitFor", "/spec/phases/1/kind"] {
        assert!(message.contains(pointer), "{pointer} is not in {message}");
    }
    let object = made(&cluster.client, &namespace, "aim", json!({"phases": [], "targetPhase": "gone"})).await;
    assert_eq!(accepted(&cluster.client, &object).await.unwrap_err().0, Refusal::InvalidSpec);
}

#[tokio::test]
async fn a_manifest_in_a_config_map_is_read_or_missed_by_name() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("config-map").await;
    let spec = json!({"manifestFrom": {"configMap": {"name": "plans", "key": "boot.yaml"}}});
    let object = made(&cluster.client, &namespace, "boot", spec).await;
    let (refusal, message) = accepted(&cluster.client, &object).await.unwrap_err();
    assert_eq!(refusal, Refusal::ManifestNotFound);
    assert!(message.contains("plans"), "{message}");

    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &namespace);
    let metadata = ObjectMeta { name: Some("plans".to_owned()), ..ObjectMeta::default() };
    maps.create(&PostParams::default(), &ConfigMap { metadata, ..ConfigMap::default() }).await.unwrap();
    let (refusal, message) = accepted(&cluster.client, &object).await.unwrap_err();
    assert_eq!(refusal, Refusal::ManifestNotFound);
    assert!(message.contains("boot.yaml"), "{message}");

    let put = async |text: &str| {
        let patch = Patch::Merge(json!({"data": {"boot.yaml": text}}));
        maps.patch("plans", &PatchParams::default(), &patch).await.unwrap();
    };
    put("- kind: Phase\n  id: a\n  spec: {}\n").await;
    assert_eq!(accepted(&cluster.client, &object).await.unwrap().plan.len(), 1);
    put("- kind: Phase\n  id: a\n  spec: {waitFor: [b]}\n").await;
    let (refusal, message) = accepted(&cluster.client, &object).await.unwrap_err();
    assert_eq!(refusal, Refusal::InvalidManifest);
    assert!(message.contains("boot.yaml") && message.contains("line 3"), "{message}");
    put("apiVersion: pmp.dev/v1alpha1\nkind: PhaseManifest\nmetadata: {name: x}\nspec: {phases: []}\n").await;
    assert_eq!(accepted(&cluster.client, &object).await.unwrap_err().0, Refusal::InvalidManifest);
}

async fn stored(client: &Client, namespace: &str) -> Vec<ControllerRevision> {
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
    api.list(&ListParams::default()).await.unwrap().items
}

#[tokio::test]
async fn a_revision_is_stored_once_and_comes_back_as_it_was() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("revision").await;
    let manifest = phases(&["a", "b"]);
    let object = made(&cluster.client, &namespace, "boot", json!({"phases": manifest})).await;
    let plan = plan(&manifest);
    for _ in 0..2 {
        revision::store(&cluster.client, &object, 1, &plan, Strategy::Hybrid).await.unwrap();
    }
    let stored = stored(&cluster.client, &namespace).await;
    assert_eq!(stored.len(), 1);
    let owner = &stored[0].metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.kind.as_str(), &owner.uid), ("PhaseManifest", object.metadata.uid.as_ref().unwrap()));
    assert_eq!(stored[0].data.as_ref().unwrap().0["digest"], plan.digest().to_string());
    assert_eq!(revision::load(&cluster.client, &object, 1).await.unwrap(), Some(plan));
    assert_eq!(revision::load(&cluster.client, &object, 2).await.unwrap(), None);
}

#[tokio::test]
async fn a_revision_that_never_started_is_replaced_and_one_that_did_is_not() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("occupied").await;
    let (old, new) = (plan(&phases(&["old"])), plan(&phases(&["new"])));
    let object = made(&cluster.client, &namespace, "boot", json!({"phases": phases(&["new"])})).await;
    let store = async |plan| revision::store(&cluster.client, &object, 1, plan, Strategy::Hybrid).await;
    store(&old).await.unwrap();
    store(&new).await.unwrap();
    let started = json!({"revision": 1, "digest": new.digest().to_string()});
    let started = with_status(&cluster.client, &object, started).await;
    let error = store(&old).await.unwrap_err();
    assert_eq!(error.reason(), "RevisionOccupied");
    assert_eq!(revision::load(&cluster.client, &started, 1).await.unwrap(), Some(new));
}

#[tokio::test]
async fn a_revision_past_the_bound_is_found_in_the_spec_until_that_is_edited() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("large").await;
    let manifest = noisy();
    let object = made(&cluster.client, &namespace, "boot", json!({"phases": manifest})).await;
    let large = plan(&manifest);
    revision::store(&cluster.client, &object, 1, &large, Strategy::Hybrid).await.unwrap();
    let data = stored(&cluster.client, &namespace).await.remove(0).data.unwrap().0;
    assert!(data.get("manifest").is_none(), "it is too large to be stored");
    assert_eq!(data["reference"]["generation"], 1);
    assert_eq!(revision::load(&cluster.client, &object, 1).await.unwrap(), Some(large));
    let api: Api<PhaseManifest> = Api::namespaced(cluster.client.clone(), &namespace);
    let edit = Patch::Merge(json!({"spec": {"phases": phases(&["a"])}}));
    let edited = api.patch("boot", &PatchParams::default(), &edit).await.unwrap();
    assert_eq!(revision::load(&cluster.client, &edited, 1).await.unwrap(), None);
}

#[tokio::test]
async fn pruning_keeps_the_current_revision_and_the_newest_before_it() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("prune").await;
    let object = made(&cluster.client, &namespace, "boot", json!({"phases": []})).await;
    let other = made(&cluster.client, &namespace, "other", json!({"phases": []})).await;
    for number in 1..=6 {
        revision::store(&cluster.client, &object, number, &Plan::default(), Strategy::Hybrid).await.unwrap();
    }
    revision::store(&cluster.client, &other, 1, &Plan::default(), Strategy::Hybrid).await.unwrap();
    revision::prune(&cluster.client, &object, 2, 5..5).await.unwrap();
    let mut left: Vec<(String, i64)> = stored(&cluster.client, &namespace)
        .await
        .into_iter()
        .map(|stored| (stored.metadata.owner_references.unwrap()[0].name.clone(), stored.revision))
        .collect();
    left.sort();
    let expected = [("boot", 3), ("boot", 4), ("boot", 5), ("boot", 6), ("other", 1)];
    assert_eq!(left, expected.map(|(name, number)| (name.to_owned(), number)));
}

#[tokio::test]
async fn pruning_leaves_what_the_status_names_however_few_are_kept() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("prune-started").await;
    let object = made(&cluster.client, &namespace, "boot", json!({"phases": []})).await;
    for number in 1..=3 {
        revision::store(&cluster.client, &object, number, &Plan::default(), Strategy::Hybrid).await.unwrap();
    }
    revision::prune(&cluster.client, &object, 0, 2..3).await.unwrap();
    let mut left: Vec<i64> = stored(&cluster.client, &namespace).await.iter().map(|stored| stored.revision).collect();
    left.sort_unstable();
    assert_eq!(left, [2, 3]);
}

fn session(phases: &Value) -> Session {
    let now = jiff::Timestamp::now();
    Session::start("uid", plan(phases).into(), 1, Strategy::Hybrid, Settings::default(), now)
}

fn hear_all(session: &mut Session, events: &mut SessionEvents, inputs: Vec<Input>) {
    for input in inputs {
        session.handle(input, jiff::Timestamp::now());
        while let Some(output) = session.poll_output() {
            events.hear(&output, session);
        }
    }
}

fn report(phase: &str, status: ReportStatus) -> Input {
    Input::Report(Report {
        phase: PhaseId::new(phase).unwrap(),
        status,
        token: None,
        runtime: Some("worker-1".to_owned()),
        progress: None,
        message: None,
        retry: RetryAdvice::AsConfigured,
        heartbeat: None,
    })
}

async fn events_of(client: &Client, namespace: &str) -> Vec<Event> {
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let mut found = api.list(&ListParams::default()).await.unwrap().items;
    found.sort_by_key(|event| event.event_time.clone());
    found
}

#[tokio::test]
async fn describe_tells_the_story_of_a_session_once_whoever_tells_it() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("events").await;
    let manifest = phases(&["a"]);
    let object = made(&cluster.client, &namespace, "boot", json!({"phases": manifest})).await;
    let events = Events::start(cluster.client.clone(), "operator-1", Clock::System);
    // The second one is the next leader, that tells all of it again.
    for _ in 0..2 {
        let mut session = session(&manifest);
        while session.poll_output().is_some() {}
        let mut told = events.session(&regarding(&object));
        let inputs = vec![
            Input::Stored,
            Input::Offers(OffersGate::Open),
            report("a", ReportStatus::Running),
            report("a", ReportStatus::Complete),
        ];
        hear_all(&mut session, &mut told, inputs);
    }
    assert!(events.flush(SOON).await);
    let found = events_of(&cluster.client, &namespace).await;
    let reasons: Vec<&str> = found.iter().filter_map(|event| event.reason.as_deref()).collect();
    assert_eq!(reasons, ["Started", "PhaseRunning", "PhaseComplete", "Succeeded"]);
    assert_eq!(events.counters().posted, 8, "what was there before counts as posted");
    let about = found[0].regarding.as_ref().unwrap();
    assert_eq!((&about.uid, &about.resource_version), (&object.metadata.uid, &object.metadata.resource_version));
    assert_eq!(found[0].reporting_controller.as_deref(), Some(CONTROLLER));
    assert_eq!(found[0].reporting_instance.as_deref(), Some("operator-1"));

    let described = cluster.kubectl(&["describe", "pm", "boot", "--namespace", &namespace]).await;
    let text = String::from_utf8(described.stdout).unwrap();
    assert!(text.contains("phase a runs on worker-1") && text.contains("1 of 1 phases are done"), "{text}");
}

#[tokio::test]
async fn events_over_a_session_s_budget_are_dropped_and_counted() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("budget").await;
    let object = made(&cluster.client, &namespace, "boot", json!({"phases": []})).await;
    let events = Events::start(cluster.client.clone(), "operator-1", Clock::System);
    let mut told = events.session(&regarding(&object));
    for n in 0..40 {
        told.refused(n, Refusal::InvalidManifest, "it is wrong\nin two lines");
    }
    assert!(events.flush(SOON).await);
    let counters = events.counters();
    assert_eq!((counters.posted, counters.dropped, counters.failed), (25, 15, 0));
    let found = events_of(&cluster.client, &namespace).await;
    assert_eq!(found.len(), 25);
    assert_eq!(found[0].reason.as_deref(), Some("InvalidManifest"));
    assert_eq!(found[0].note.as_deref(), Some("it is wrong in two lines"));

    // How it ended is told all the same.
    told.hear(&Output::Verdict(Verdict::Succeeded), &session(&json!([])));
    assert!(events.flush(SOON).await);
    let found = events_of(&cluster.client, &namespace).await;
    assert_eq!(found.last().and_then(|event| event.reason.as_deref()), Some("Succeeded"));
    // Names are in the order of time, by which `kubectl describe` goes.
    assert!(found.is_sorted_by_key(|event| event.metadata.name.clone()));
}

#[tokio::test]
async fn an_event_of_a_namespace_that_is_gone_fails_and_holds_up_nobody() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("after").await;
    let object = made(&cluster.client, &namespace, "boot", json!({"phases": []})).await;
    let events = Events::start(cluster.client.clone(), "operator-1", Clock::System);
    let mut about = regarding(&object);
    about.namespace = Some("no-such-namespace".to_owned());
    let session = session(&json!([]));
    events.session(&about).hear(&Output::Reopened, &session);
    events.session(&regarding(&object)).hear(&Output::Reopened, &session);
    assert!(events.flush(SOON).await);
    assert_eq!((events.counters().posted, events.counters().failed), (1, 1));
}

fn control(command: Command, phase: Option<&str>) -> ControlMessage {
    ControlMessage { command, phase: phase.map(|id| PhaseId::new(id).unwrap()), attempt: None, runtime: None }
}

#[tokio::test]
async fn commands_from_the_bus_become_fields_of_the_spec() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("commands").await;
    let object = made(&cluster.client, &namespace, "boot", json!({"phases": phases(&["a"])})).await;
    let say = async |command, phase: Option<&str>| {
        let (control, id) = (control(command, phase), CommandId::fresh());
        obey(&cluster.client, &object, &control, &id, "default").await.unwrap()
    };
    assert!(matches!(say(Command::Pause, None).await, Obeyed::Written(_)));
    assert!(matches!(say(Command::Pause, None).await, Obeyed::Unchanged(_)));
    assert_eq!(read(&cluster.client, &object).await.spec.suspend, Some(true));
    assert!(matches!(say(Command::Resume, None).await, Obeyed::Written(_)));
    assert!(matches!(say(Command::Retry, Some("a")).await, Obeyed::Written(_)));
    let now = read(&cluster.client, &object).await;
    assert_eq!(now.spec.suspend, Some(false));
    let requests = now.spec.requests.unwrap();
    assert_eq!(
        (requests.len(), requests[0].action, requests[0].phase.as_deref()),
        (1, RequestAction::Retry, Some("a"))
    );
    let actor: Value = serde_json::from_str(&now.metadata.annotations.unwrap()[LAST_COMMAND_ANNOTATION]).unwrap();
    assert_eq!(actor, json!({"connection": "default", "command": "x-retry", "phase": "a"}));

    // Once it is handled, the next one takes its place.
    let handled = json!({"requests": [{"token": requests[0].token, "result": "Done"}]});
    with_status(&cluster.client, &object, handled).await;
    assert!(matches!(say(Command::Skip, Some("a")).await, Obeyed::Written(_)));
    let requests = read(&cluster.client, &object).await.spec.requests.unwrap();
    assert_eq!((requests.len(), requests[0].action), (1, RequestAction::Skip));
    assert!(matches!(say(Command::Cancel, Some("a")).await, Obeyed::Refused(_)));
    assert!(matches!(say(Command::Cancel, None).await, Obeyed::Written(_)));
    assert_eq!(read(&cluster.client, &object).await.spec.shutdown, Some(Shutdown::Cancel));
}

#[tokio::test]
async fn commands_that_meet_on_one_resource_all_arrive() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("meeting").await;
    let object = made(&cluster.client, &namespace, "boot", json!({"phases": phases(&["a"])})).await;
    let controls: Vec<_> =
        (0..6).map(|n| (control(Command::Retry, Some("a")), CommandId::of(&format!("{n}")))).collect();
    let said = controls.iter().map(|(control, id)| obey(&cluster.client, &object, control, id, "default"));
    for obeyed in futures::future::join_all(said).await {
        assert!(matches!(obeyed.unwrap(), Obeyed::Written(_)));
    }
    assert_eq!(read(&cluster.client, &object).await.spec.requests.unwrap().len(), 6);
    // The same messages again are the same requests.
    let (control, id) = &controls[0];
    let again = obey(&cluster.client, &object, control, id, "default").await.unwrap();
    assert!(matches!(again, Obeyed::Unchanged(_)));
}

#[tokio::test]
async fn a_command_for_a_resource_that_was_made_anew_does_nothing() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("anew").await;
    let mut object = made(&cluster.client, &namespace, "boot", json!({"phases": []})).await;
    object.metadata.uid = Some("00000000-0000-4000-8000-000000000000".to_owned());
    let obeyed = obey(&cluster.client, &object, &control(Command::Pause, None), &CommandId::fresh(), "default").await;
    assert_eq!(obeyed.unwrap(), Obeyed::Gone);
    assert_eq!(read(&cluster.client, &object).await.spec.suspend, None);
}

#[tokio::test]
async fn handler_labels_are_put_beside_those_of_others() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("labels").await;
    let object = made(&cluster.client, &namespace, "boot", json!({"phases": []})).await;
    let api: Api<PhaseManifest> = Api::namespaced(cluster.client.clone(), &namespace);
    let others = Patch::Merge(json!({"metadata": {"labels": {"team": "a"}}}));
    api.patch("boot", &PatchParams::default(), &others).await.unwrap();
    let wanted = [("stage", "done"), ("team", "b"), ("kubernetes.io/name", "x")];
    let wanted: BTreeMap<String, String> = wanted.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    for _ in 0..2 {
        let refused = put_labels(&cluster.client, &object, &wanted, &LabelRules::default()).await.unwrap();
        let keys: Vec<&str> = refused.iter().map(|label| label.key.as_str()).collect();
        assert_eq!(keys, ["kubernetes.io/name", "team"]);
    }
    let now = read(&cluster.client, &object).await.metadata;
    let expected = [("stage", "done"), ("team", "a")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(now.labels, Some(expected.into()));
    assert_eq!(now.generation, object.metadata.generation, "labels are no edit");
}
