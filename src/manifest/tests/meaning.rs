//! What good documents mean.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;

use super::{document, one, plan};
use crate::manifest::{
    Diff, ExternalWait, FailureAction, Format, InstanceMode, Jitter, OnExhausted, OtherKinds, PhaseId, PhaseSpec, Plan,
    SuccessAction, diff, from_values, parse,
};

const PASCAL: &str = r#"[{"Kind": "Phase", "Id": "preflight", "Spec": {
  "description": "Ensure dependencies are met",
  "selector": { "match_labels": { "phase": "preflight" } },
  "instance_mode": "immediate",
  "wait_for": {},
  "retry": { "max_attempts": 3 },
  "on_failure": { "action": "raise", "spec": {
    "message": ["Preflight failed"], "notify": { "email": "ops@example.com" } } } } }]"#;

const CAMEL: &str = r#"[{"kind": "Phase", "id": "preflight", "spec": {
  "description": "Ensure dependencies are met",
  "selector": { "matchLabels": { "phase": "preflight" } },
  "instanceMode": "immediate",
  "waitFor": {},
  "retry": { "maxAttempts": 3 },
  "onFailure": { "action": "raise", "spec": {
    "message": ["Preflight failed"], "notify": { "email": "ops@example.com" } } } } }]"#;

fn spec(text: &str) -> PhaseSpec {
    plan(&one(text)).phases()[0].spec.clone()
}

#[test]
fn the_two_examples_of_the_protocol_are_one_manifest() {
    let (pascal, camel) = (plan(PASCAL), plan(CAMEL));
    assert_eq!(pascal, camel);
    assert_eq!(pascal.digest(), camel.digest());
    assert_eq!(
        camel.canonical(),
        json!([{"kind": "Phase", "id": "preflight", "spec": {
            "description": "Ensure dependencies are met",
            "selector": {"matchLabels": {"phase": "preflight"}},
            "retry": {"maxAttempts": 3},
            "onFailure": {"spec": {"message": ["Preflight failed"], "notify": {"email": ["ops@example.com"]}}},
        }}])
    );
}

#[test]
fn an_empty_manifest_is_valid() {
    assert!(plan("[]").is_empty());
    assert!(plan("# nothing yet\n[]\n").is_empty());
    assert_eq!(plan("[]").digest(), Plan::default().digest());
}

#[test]
fn everything_absent_has_its_default() {
    for text in
        ["{}", "", "null", "{waitFor: , selector: {}, retry: null, onFailure: {}, x-timeouts: {}, x-exec: null}"]
    {
        assert_eq!(spec(text), PhaseSpec::default(), "{text}");
    }
    assert_eq!(plan("[{kind: Phase, id: a}]"), plan(&one("{}")));
}

#[test]
fn every_field_is_read() {
    let spec = spec(
        "{description: d, selector: {matchLabels: {a: b}}, instanceMode: onUse, waitFor: {timeout: 90},
        retry: {maxAttempts: '5'}, onFailure: {action: continue, spec: {message: m, notify: {slack: ops, email: [a@b, c@d]},
        labels: {x/y: z}}}, onSuccess: {action: raise}, x-timeouts: {offer: 5s, start: 1m, attempt: 1h, heartbeat: 300ms,
        total: 2h}, x-backoff: {initial: 1, factor: 1.5, max: 5m, jitter: None}, x-priority: '-7',
        x-waitFor: [{manifest: base, phase: done}], x-onExhausted: Hold, x-exec: {command: [a, 1.0]}, x-own: [1, 2.5]}",
    );
    let labels = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    assert_eq!(spec.description, "d");
    assert_eq!(spec.selector, labels("a", "b"));
    assert_eq!(spec.instance_mode, InstanceMode::OnUse);
    assert_eq!(spec.wait_for.timeout, Some(Duration::from_secs(90)));
    assert_eq!(spec.max_attempts, 5);
    assert_eq!(spec.on_failure.action, FailureAction::Continue);
    assert_eq!(
        (&spec.on_failure.messages[..], &spec.on_failure.slack[..]),
        (&["m".to_owned()][..], &["ops".to_owned()][..])
    );
    assert_eq!(spec.on_failure.email, ["a@b", "c@d"]);
    assert_eq!(spec.on_failure.labels, labels("x/y", "z"));
    assert_eq!(spec.on_success.action, SuccessAction::Raise);
    assert_eq!(spec.timeouts.heartbeat, Some(Duration::from_millis(300)));
    assert_eq!(spec.timeouts.total, Some(Duration::from_hours(2)));
    assert_eq!((spec.backoff.factor, spec.backoff.jitter), (Some(1.5), Some(Jitter::None)));
    assert_eq!(spec.priority, -7);
    assert_eq!(spec.on_exhausted, OnExhausted::Hold);
    let wait = ExternalWait { manifest: "base".to_owned(), phase: PhaseId::new("done").unwrap() };
    assert_eq!(spec.wait_for_others, [wait]);
    assert_eq!(spec.extensions["x-exec"], json!({"command": ["a", 1]}));
    assert_eq!(spec.extensions["x-own"], json!([1, 2.5]));
    assert_eq!(spec.extensions["x-backoff"], json!({"initial": "1s", "factor": 1.5, "max": "5m", "jitter": "None"}));
    assert_eq!(spec.extensions["x-priority"], json!(-7));
}

#[test]
fn repeats_in_wait_for_collapse() {
    let plan = plan("[{kind: Phase, id: a}, {kind: Phase, id: b, spec: {waitFor: [a, a, a]}}]");
    let (a, b) = (plan.index_of("a").unwrap(), plan.index_of("b").unwrap());
    assert_eq!(plan.waits(b), [a]);
}

#[test]
fn extensions_are_kept_wherever_they_stand() {
    let text = "[{kind: Phase, id: a, x-top: 1, spec: {x-s: 1, selector: {x-sel: 1}, waitFor: {x-w: 1}, retry: {x-r: {a/b: 1}},
        onFailure: {x-h: 1, spec: {x-hs: 1, notify: {x-n: 1}}}}}]";
    let canonical = plan(text).canonical();
    assert_eq!(
        canonical,
        json!([{"kind": "Phase", "id": "a", "x-top": 1, "spec": {"x-s": 1, "selector": {"x-sel": 1}, "waitFor": {"x-w": 1},
            "retry": {"x-r": {"a/b": 1}}, "onFailure": {"x-h": 1, "spec": {"x-hs": 1, "notify": {"x-n": 1}}}}}])
    );
    assert_eq!(plan(&canonical.to_string()).canonical(), canonical);
}

#[test]
fn a_whole_resource_is_read() {
    let text = "apiVersion: pmp.dev/v1alpha1\nkind: PhaseManifest\nmetadata: {name: n, namespace: ns, labels: {a: b}}\n\
        spec:\n  suspend: true\n  backoff: {factor: 2.0}\n  phases:\n  - {Kind: Phase, id: a}\n";
    let document = document(text);
    let resource = document.resource.unwrap();
    assert_eq!((resource.name.as_deref(), resource.namespace.as_deref()), (Some("n"), Some("ns")));
    assert_eq!(serde_json::Value::Object(resource.spec), json!({"suspend": true, "backoff": {"factor": 2}}));
    assert_eq!(document.plan, plan("[{kind: Phase, id: a}]"));
}

#[test]
fn a_resource_that_names_its_manifest_has_no_phases() {
    let text =
        "apiVersion: pmp.dev/v1alpha1\nkind: PhaseManifest\nspec: {manifestFrom: {configMap: {name: a, key: b}}}\n";
    let document = document(text);
    assert!(document.plan.is_empty());
    assert!(document.resource.unwrap().spec.contains_key("manifestFrom"));
}

#[test]
fn other_kinds_are_named_when_they_are_ignored() {
    let text = "[{kind: Phase, id: a}, {apiVersion: v1, kind: ConfigMap, metadata: {name: c}}, {Kind: Note, id: n}]";
    let document = parse(text.as_bytes(), Format::Auto, OtherKinds::Ignore).unwrap();
    assert_eq!(document.plan.len(), 1);
    let ignored: Vec<_> = document.ignored.iter().map(|i| (&*i.pointer, &*i.kind, i.name.as_deref())).collect();
    assert_eq!(ignored, [("/1", "ConfigMap", Some("c")), ("/2", "Note", Some("n"))]);
}

#[test]
fn stored_values_are_the_same_plan_as_their_text() {
    let serde_json::Value::Array(values) = serde_json::from_str(PASCAL).unwrap() else { panic!("a list") };
    assert_eq!(from_values(&values, OtherKinds::Refuse).unwrap().0, plan(CAMEL));
}

#[test]
fn anchors_and_merges_of_yaml_are_unfolded() {
    let text = "- {kind: Phase, id: a, spec: &s {retry: {maxAttempts: 4}}}\n- {kind: Phase, id: b, spec: {<<: *s, waitFor: a}}\n";
    assert_eq!(plan(text).phases()[1].spec.max_attempts, 4);
}

#[test]
fn how_a_phase_is_tried_does_not_change_its_digest() {
    let of = |spec: &str| *plan(&one(spec)).phase_digest(crate::manifest::PhaseIx::new(0));
    let same = [
        "{description: d}",
        "{retry: {maxAttempts: 9}}",
        "{x-priority: 3}",
        "{x-timeouts: {attempt: 5s}}",
        "{x-backoff: {initial: 5s}}",
        "{x-onExhausted: Hold}",
        "{waitFor: {timeout: 5s}}",
        "{onFailure: {action: continue}}",
    ];
    for spec in same {
        assert_eq!(of(spec), of("{}"), "{spec}");
        assert_ne!(plan(&one(spec)).digest(), plan(&one("{}")).digest(), "{spec}");
    }
    for spec in [
        "{x-exec: {name: a}}",
        "{x-own: 1}",
        "{selector: {matchLabels: {a: b}}}",
        "{x-waitFor: {manifest: a, phase: b}}",
    ] {
        assert_ne!(of(spec), of("{}"), "{spec}");
    }
}

#[test]
fn a_phase_reruns_when_what_it_waits_for_changed() {
    let text = |own: &str, order: &str| {
        format!(
            "[{{kind: Phase, id: a, spec: {{x-own: {own}}}}}, {{kind: Phase, id: z}}, {{kind: Phase, id: b, spec: {{waitFor: {order}}}}}]"
        )
    };
    let old = plan(&text("1", "[a, z]"));
    let ids = |ids: &[PhaseId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(ids(&diff(&old, &plan(&text("2", "[a, z]"))).rerun), ["a", "b"]);
    let reordered = diff(&old, &plan(&text("1", "[z, a]")));
    assert!(reordered.rerun.is_empty() && reordered.edges_added.is_empty());
    assert_eq!(reordered.changed.len(), 1);
}

#[test]
fn a_diff_names_what_changed() {
    let old = plan(
        "[{kind: Phase, id: a}, {kind: Phase, id: b, spec: {waitFor: a}}, {kind: Phase, id: c, spec: {waitFor: a}}]",
    );
    let new =
        plan("[{kind: Phase, id: a}, {kind: Phase, id: c, spec: {waitFor: d, description: x}}, {kind: Phase, id: d}]");
    let found = diff(&old, &new);
    let edge = |edge: &crate::manifest::Edge| format!("{} {}", edge.phase, edge.waits_for);
    assert_eq!(found.added, [PhaseId::new("d").unwrap()]);
    assert_eq!(found.removed, [PhaseId::new("b").unwrap()]);
    assert_eq!(found.changed[0].fields, ["description", "waitFor"]);
    assert_eq!(found.edges_added.iter().map(edge).collect::<Vec<_>>(), ["c d"]);
    assert_eq!(found.edges_removed.iter().map(edge).collect::<Vec<_>>(), ["b a", "c a"]);
    assert_eq!(found.changes_count(), 3);
    assert_eq!(diff(&old, &old), Diff::default());
}

#[test]
fn a_digest_is_read_back_from_its_text() {
    let digest = *plan(CAMEL).digest();
    assert_eq!(digest.to_string().parse(), Ok(digest));
    assert!("sha256:xyz".parse::<crate::manifest::Digest>().is_err());
}
