//! The laws of an API server that the operator builds upon, each held by the fake one and by a real kube-apiserver.
//!
//! A simulation proves nothing over a fake that is kinder than what it stands for. The fake bus has its laws in
//! `tests/it/bus/suite.rs`.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::{apps::v1::ControllerRevision, events::v1::Event};
use kube::{
    Api, Client, Error,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent, WatchParams},
};
use pmp::{resource::PhaseManifest, sessions::Clock};
use serde_json::{Value, json};

use super::{
    api::ApiServer,
    fates::{Fates, Sky},
    world::{Door, Role, Shared},
};
use crate::support::unique;

const DEADLINE: Duration = Duration::from_secs(20);

/// Makes each law two tests.
macro_rules! laws {
    ($($law:ident)*) => {
        mod in_the_simulation {
            use super::*;
            $(#[tokio::test] async fn $law() {
                super::$law(fake().client(&Door::new("a person", Role::Person)), unique("law")).await;
            })*
        }
        mod on_a_real_server {
            use super::*;
            $(#[tokio::test] async fn $law() {
                let cluster = crate::resource::cluster().await;
                let namespace = cluster.namespace("law").await;
                super::$law(Client::clone(&cluster.client), namespace).await;
            })*
        }
    };
}

laws! {
    a_new_resource_has_a_first_generation_and_the_default_status
    a_change_of_spec_raises_the_generation_and_leaves_the_status
    a_change_of_status_raises_nothing_and_changes_nothing_else
    a_patch_that_changes_nothing_makes_no_version
    a_null_in_a_patch_takes_a_field_away
    a_patch_under_an_old_version_is_a_conflict
    another_uid_stops_a_patch_but_not_one_of_status_alone
    a_name_is_given_once
    a_deletion_whose_preconditions_do_not_hold_is_a_conflict
    a_resource_made_anew_is_another_one
    what_is_not_there_is_not_found
    labels_change_no_generation
    metadata_alone_is_answered_where_it_is_asked_for
    revisions_are_found_by_their_label
    events_are_found_by_what_they_are_about
    a_watch_tells_what_happened_after_a_version_in_order
    a_watch_from_the_version_of_a_list_misses_nothing
    a_watch_ends_by_its_timeout
}

fn fake() -> ApiServer {
    ApiServer::new(Clock::System, Shared::new(Fates::new(0, Sky::Calm)))
}

fn api(client: &Client, namespace: &str) -> Api<PhaseManifest> {
    Api::namespaced(client.clone(), namespace)
}

fn manifest(name: &str, spec: &Value) -> PhaseManifest {
    let object = json!({
        "apiVersion": "pmp.dev/v1alpha1", "kind": "PhaseManifest",
        "metadata": {"name": name}, "spec": spec, "status": {"state": "of its maker"},
    });
    serde_json::from_value(object).unwrap()
}

async fn made(api: &Api<PhaseManifest>, name: &str) -> PhaseManifest {
    api.create(&PostParams::default(), &manifest(name, &json!({"phases": [], "suspend": true}))).await.unwrap()
}

async fn patched(api: &Api<PhaseManifest>, name: &str, patch: Value) -> Result<PhaseManifest, Error> {
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
}

async fn stated(api: &Api<PhaseManifest>, name: &str, patch: Value) -> Result<PhaseManifest, Error> {
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await
}

fn version(object: &PhaseManifest) -> Option<&str> {
    object.metadata.resource_version.as_deref()
}

/// Code and reason of a refusal.
fn refusal<T>(answer: Result<T, Error>) -> (u16, String) {
    match answer {
        Err(Error::Api(status)) => (status.code, status.reason.clone()),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was not refused"),
    }
}

fn refused_as(code: u16, reason: &str) -> (u16, String) {
    (code, reason.to_owned())
}

async fn a_new_resource_has_a_first_generation_and_the_default_status(client: Client, namespace: String) {
    let object = made(&api(&client, &namespace), "boot").await;
    assert_eq!(object.metadata.generation, Some(1));
    assert!(object.metadata.uid.is_some() && object.metadata.creation_timestamp.is_some());
    let status = serde_json::to_value(object.status.unwrap()).unwrap();
    assert_eq!((&status["observedGeneration"], &status["state"]), (&json!(-1), &Value::Null));
}

async fn a_change_of_spec_raises_the_generation_and_leaves_the_status(client: Client, namespace: String) {
    let api = api(&client, &namespace);
    let before = made(&api, "boot").await;
    let patch = json!({"spec": {"suspend": false}, "status": {"state": "Running"}});
    let after = patched(&api, "boot", patch).await.unwrap();
    assert_eq!(after.metadata.generation, Some(2));
    assert_eq!(after.spec.suspend, Some(false));
    assert_eq!(after.status, before.status);
    assert_ne!(version(&after), version(&before));
}

async fn a_change_of_status_raises_nothing_and_changes_nothing_else(client: Client, namespace: String) {
    let api = api(&client, &namespace);
    let before = made(&api, "boot").await;
    let patch = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"suspend": false}, "status": {"state": "Running"}});
    let after = stated(&api, "boot", patch).await.unwrap();
    assert_eq!(after.metadata.generation, Some(1));
    assert_eq!((after.spec, after.metadata.labels), (before.spec.clone(), before.metadata.labels.clone()));
    assert_eq!(after.status.unwrap().state.as_deref(), Some("Running"));
    assert_ne!(after.metadata.resource_version, before.metadata.resource_version);
}

async fn a_patch_that_changes_nothing_makes_no_version(client: Client, namespace: String) {
    let api = api(&client, &namespace);
    let made = made(&api, "boot").await;
    let nothing = json!({"spec": {"suspend": true}});
    let first = patched(&api, "boot", nothing.clone()).await.unwrap();
    assert_ne!(version(&made), version(&first), "the first one stores the default status, which was only shown before");
    let second = patched(&api, "boot", nothing).await.unwrap();
    assert_eq!(version(&second), version(&first));
    let first = stated(&api, "boot", json!({"status": {"state": "Running"}})).await.unwrap();
    let second = stated(&api, "boot", json!({"status": {"state": "Running"}})).await.unwrap();
    assert_eq!(version(&first), version(&second));
}

async fn a_null_in_a_patch_takes_a_field_away(client: Client, namespace: String) {
    let api = api(&client, &namespace);
    made(&api, "boot").await;
    stated(&api, "boot", json!({"status": {"state": "Running", "message": "m"}})).await.unwrap();
    let after = stated(&api, "boot", json!({"status": {"state": null}})).await.unwrap().status.unwrap();
    assert_eq!((after.state, after.message.as_deref()), (None, Some("m")));
}

async fn a_patch_under_an_old_version_is_a_conflict(client: Client, namespace: String) {
    let api = api(&client, &namespace);
    let old = made(&api, "boot").await;
    let new = patched(&api, "boot", json!({"spec": {"suspend": false}})).await.unwrap();
    let under = |object: &PhaseManifest| json!({"metadata": {"resourceVersion": object.metadata.resource_version}, "status": {"state": "Running"}});
    assert_eq!(refusal(stated(&api, "boot", under(&old)).await), refused_as(409, "Conflict"));
    assert_eq!(refusal(patched(&api, "boot", under(&old)).await), refused_as(409, "Conflict"));
    stated(&api, "boot", under(&new)).await.unwrap();
}

async fn another_uid_stops_a_patch_but_not_one_of_status_alone(client: Client, namespace: String) {
    let api = api(&client, &namespace);
    made(&api, "boot").await;
    let of_another = |patch: Value| {
        let mut patch = patch;
        patch["metadata"]["uid"] = json!("00000000-0000-4000-8000-000000000000");
        patch
    };
    let (code, _) = refusal(patched(&api, "boot", of_another(json!({"spec": {"suspend": false}}))).await);
    assert!(matches!(code, 409 | 422), "{code}");
    // So whoever writes a status names the version, which no two objects share.
    let status = json!({"status": {"state": "Running"}});
    stated(&api, "boot", of_another(status.clone())).await.unwrap();
    let mut old = of_another(status);
    old["metadata"]["resourceVersion"] = json!("1");
    assert_eq!(refusal(stated(&api, "boot", old).await), refused_as(409, "Conflict"));
}

async fn a_name_is_given_once(client: Client, namespace: String) {
    let api = api(&client, &namespace);
    made(&api, "boot").await;
    let second = api.create(&PostParams::default(), &manifest("boot", &json!({}))).await;
    assert_eq!(refusal(second), refused_as(409, "AlreadyExists"));
}

async fn a_deletion_whose_preconditions_do_not_hold_is_a_conflict(client: Client, namespace: String) {
    let api = api(&client, &namespace);
    let object = made(&api, "boot").await;
    let only = |uid: Option<&str>, version: Option<&str>| {
        let preconditions = Preconditions { uid: uid.map(str::to_owned), resource_version: version.map(str::to_owned) };
        DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }
    };
    assert_eq!(refusal(api.delete("boot", &only(Some("another"), None)).await), refused_as(409, "Conflict"));
    assert_eq!(refusal(api.delete("boot", &only(None, Some("1"))).await), refused_as(409, "Conflict"));
    let is_it = only(object.metadata.uid.as_deref(), object.metadata.resource_version.as_deref());
    assert!(api.delete("boot", &is_it).await.unwrap().is_right(), "nothing holds it back, so it is gone");
}

async fn a_resource_made_anew_is_another_one(client: Client, namespace: String) {
    let api = api(&client, &namespace);
    let first = made(&api, "boot").await;
    api.delete("boot", &DeleteParams::default()).await.unwrap();
    let second = made(&api, "boot").await;
    assert_ne!(first.metadata.uid, second.metadata.uid);
    assert_eq!(second.metadata.generation, Some(1));
}

async fn what_is_not_there_is_not_found(client: Client, namespace: String) {
    let api = api(&client, &namespace);
    let not_found = refused_as(404, "NotFound");
    assert_eq!(refusal(api.get("gone").await), not_found);
    assert_eq!(refusal(patched(&api, "gone", json!({"spec": {}})).await), not_found);
    assert_eq!(refusal(stated(&api, "gone", json!({"status": {}})).await), not_found);
    assert_eq!(refusal(api.delete("gone", &DeleteParams::default()).await), not_found);
    assert!(api.get_opt("gone").await.unwrap().is_none());
}

async fn labels_change_no_generation(client: Client, namespace: String) {
    let api = api(&client, &namespace);
    made(&api, "boot").await;
    let after = patched(&api, "boot", json!({"metadata": {"labels": {"a": "b"}}})).await.unwrap();
    assert_eq!((after.metadata.generation, after.metadata.labels.unwrap()["a"].as_str()), (Some(1), "b"));
}

async fn metadata_alone_is_answered_where_it_is_asked_for(client: Client, namespace: String) {
    let api = api(&client, &namespace);
    let whole = made(&api, "boot").await;
    let found = api.get_metadata("boot").await.unwrap();
    assert_eq!(found.metadata.uid, whole.metadata.uid);
    let patch = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    let after = api.patch_metadata("boot", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(after.metadata.labels.unwrap()["a"], "b");
}

async fn revisions_are_found_by_their_label(client: Client, namespace: String) {
    let api: Api<ControllerRevision> = Api::namespaced(client, &namespace);
    for (name, of) in [("one", "x"), ("two", "y")] {
        let metadata = json!({"name": name, "labels": {"of": of}});
        let revision = json!({"metadata": metadata, "revision": 1, "data": {"a": 1}});
        api.create(&PostParams::default(), &serde_json::from_value(revision).unwrap()).await.unwrap();
    }
    let found = api.list(&ListParams::default().labels("of=y").limit(5)).await.unwrap();
    assert_eq!(found.items.len(), 1);
    assert_eq!(found.items[0].metadata.name.as_deref(), Some("two"));
}

async fn events_are_found_by_what_they_are_about(client: Client, namespace: String) {
    let api: Api<Event> = Api::namespaced(client, &namespace);
    for (name, uid) in [("one", "11111111-0000"), ("two", "22222222-0000")] {
        let event = json!({
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingController": "pmp.dev/operator", "reportingInstance": "one",
            "action": "Run", "reason": "Started", "type": "Normal",
            "regarding": {"kind": "PhaseManifest", "namespace": namespace, "name": "boot", "uid": uid},
        });
        let event: Event = serde_json::from_value(event).unwrap();
        api.create(&PostParams::default(), &event).await.unwrap();
        assert_eq!(refusal(api.create(&PostParams::default(), &event).await), refused_as(409, "AlreadyExists"));
    }
    let found = api.list(&ListParams::default().fields("regarding.uid=22222222-0000")).await.unwrap();
    assert_eq!(found.items.len(), 1);
    assert_eq!(found.items[0].metadata.name.as_deref(), Some("two"));
}

/// What a watch from this version tells of, until there are so many.
async fn told(api: &Api<PhaseManifest>, from: &str, count: usize) -> Vec<(&'static str, PhaseManifest)> {
    let watch = api.watch(&WatchParams::default().timeout(60), from).await.unwrap();
    let events = watch.try_filter_map(async |event| {
        Ok(match event {
            WatchEvent::Added(object) => Some(("added", object)),
            WatchEvent::Modified(object) => Some(("modified", object)),
            WatchEvent::Deleted(object) => Some(("deleted", object)),
            WatchEvent::Bookmark(_) => None,
            WatchEvent::Error(status) => panic!("{status:?}"),
        })
    });
    let found = tokio::time::timeout(DEADLINE, events.take(count).try_collect()).await;
    found.expect("the watch tells all of it").unwrap()
}

async fn a_watch_tells_what_happened_after_a_version_in_order(client: Client, namespace: String) {
    let api = api(&client, &namespace);
    let first = made(&api, "first").await;
    let second = made(&api, "second").await;
    let edited = patched(&api, "first", json!({"spec": {"suspend": false}})).await.unwrap();
    api.delete("first", &DeleteParams::default()).await.unwrap();
    let told = told(&api, version(&first).unwrap(), 3).await;
    let words: Vec<_> = told.iter().map(|(word, object)| (*word, object.metadata.name.as_deref().unwrap())).collect();
    assert_eq!(words, [("added", "second"), ("modified", "first"), ("deleted", "first")]);
    assert_eq!(version(&told[0].1), version(&second));
    assert_eq!(version(&told[1].1), version(&edited));
    let number = |object: &PhaseManifest| version(object).unwrap().parse::<u64>().unwrap();
    assert!(number(&told[2].1) > number(&edited), "a deletion is a version of its own");
}

async fn a_watch_from_the_version_of_a_list_misses_nothing(client: Client, namespace: String) {
    let api = api(&client, &namespace);
    made(&api, "first").await;
    let list = api.list(&ListParams::default()).await.unwrap();
    assert_eq!(list.items.len(), 1);
    let after = stated(&api, "first", json!({"status": {"state": "Running"}})).await.unwrap();
    let told = told(&api, list.metadata.resource_version.as_deref().unwrap(), 1).await;
    assert_eq!((told[0].0, version(&told[0].1)), ("modified", version(&after)));
}

async fn a_watch_ends_by_its_timeout(client: Client, namespace: String) {
    let api = api(&client, &namespace);
    let list = api.list(&ListParams::default()).await.unwrap();
    let from = list.metadata.resource_version.unwrap();
    let watch = api.watch(&WatchParams::default().timeout(1), &from).await.unwrap();
    let end = tokio::time::timeout(DEADLINE, watch.for_each(async |_| ())).await;
    assert!(end.is_ok(), "it goes on");
}

#[tokio::test]
async fn a_watch_from_a_version_that_is_compacted_is_told_to_list_again() {
    let fake = fake();
    let client = fake.client(&Door::new("a person", Role::Person));
    let first = made(&api(&client, "law"), "first").await;
    made(&api(&client, "law"), "second").await;
    fake.compact();
    let cluster = crate::resource::cluster().await;
    let namespace = cluster.namespace("law").await;
    for (api, from) in [(api(&client, "law"), version(&first).unwrap()), (api(&cluster.client, &namespace), "1")] {
        let mut watch = std::pin::pin!(api.watch(&WatchParams::default().timeout(60), from).await.unwrap());
        let told = tokio::time::timeout(DEADLINE, watch.next()).await.unwrap().unwrap();
        assert!(matches!(&told, Ok(WatchEvent::Error(status)) if status.code == 410), "{told:?}");
    }
}
