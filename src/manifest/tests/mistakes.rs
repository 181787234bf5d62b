//! What wrong documents are told: reason, pointer and place of every mistake.

use serde_json::json;

use super::{Reason, one, problems, told};
use crate::manifest::{OtherKinds, from_values};

/// The only problem of phase `a` with this spec.
fn only(spec: &str) -> (Reason, String, String) {
    let mut told = told(&one(spec));
    assert_eq!(told.len(), 1, "{spec}: {told:?}");
    told.remove(0)
}

fn hint(text: &str) -> String {
    problems(text)[0].hint.clone().unwrap_or_default()
}

#[test]
fn each_rule_of_the_spec_has_its_reason_and_place() {
    let long = "x".repeat(20_000);
    let cases = [
        ("{retries: 3}", Reason::UnknownField, "/retries", "retries"),
        ("{description: 5}", Reason::WrongType, "/description", "5"),
        ("{description: [a]}", Reason::WrongType, "/description", "["),
        ("{instance_mode: later}", Reason::BadValue, "/instance_mode", "later"),
        ("{selector: {matchLabels: {a: 1}}}", Reason::WrongType, "/selector/matchLabels/a", "1"),
        ("{selector: {match_labels: {a b: c}}}", Reason::BadLabel, "/selector/match_labels/a b", "a b"),
        ("{selector: {matchLabels: {a/b: c/d}}}", Reason::BadLabel, "/selector/matchLabels/a~1b", "c/d"),
        ("{selector: {phase: a}}", Reason::UnknownField, "/selector/phase", "phase"),
        ("{waitFor: {timeout: soon}}", Reason::BadDuration, "/waitFor/timeout", "soon"),
        ("{waitFor: {timeout: -5}}", Reason::BadDuration, "/waitFor/timeout", "-5"),
        ("{waitFor: {timeout: 0s}}", Reason::OutOfRange, "/waitFor/timeout", "0s"),
        ("{waitFor: {phases: [1]}}", Reason::WrongType, "/waitFor/phases/0", "1"),
        ("{waitFor: true}", Reason::WrongType, "/waitFor", "true"),
        ("{waitFor: ['']}", Reason::BadId, "/waitFor/0", "''"),
        ("{waitFor: nobody}", Reason::UnknownDependency, "/waitFor", "nobody"),
        ("{wait_for: {depends_on: [a]}}", Reason::SelfDependency, "/wait_for/depends_on/0", "a"),
        ("{waitFor: {phases: [], dependsOn: []}}", Reason::DuplicateField, "/waitFor/dependsOn", "dependsOn"),
        ("{retry: {maxAttempts: 0}}", Reason::OutOfRange, "/retry/maxAttempts", "0"),
        ("{retry: {maxAttempts: 1000001}}", Reason::OutOfRange, "/retry/maxAttempts", "1000001"),
        (
            "{retry: {maxAttempts: 99999999999999999999}}",
            Reason::OutOfRange,
            "/retry/maxAttempts",
            "99999999999999999999",
        ),
        ("{retry: {maxAttempts: 1.5}}", Reason::WrongType, "/retry/maxAttempts", "1.5"),
        ("{retry: {maxAttempts: many}}", Reason::WrongType, "/retry/maxAttempts", "many"),
        ("{retry: 3}", Reason::WrongType, "/retry", "3"),
        ("{onFailure: {action: explode}}", Reason::BadValue, "/onFailure/action", "explode"),
        ("{onFailure: continue}", Reason::WrongType, "/onFailure", "continue"),
        ("{onFailure: {spec: {mesage: m}}}", Reason::UnknownField, "/onFailure/spec/mesage", "mesage"),
        ("{onFailure: {spec: {message: 1}}}", Reason::WrongType, "/onFailure/spec/message", "1"),
        ("{onFailure: {spec: {notify: {email: ops}}}}", Reason::BadValue, "/onFailure/spec/notify/email", "ops"),
        (
            "{onFailure: {spec: {notify: {email: [a@b, 'a@b,c@d']}}}}",
            Reason::BadValue,
            "/onFailure/spec/notify/email/1",
            "'a@b,c@d'",
        ),
        (
            "{onSuccess: {spec: {notify: {slack: 'https://x'}}}}",
            Reason::BadValue,
            "/onSuccess/spec/notify/slack",
            "'https://x'",
        ),
        ("{onSuccess: {spec: {labels: {-a: b}}}}", Reason::BadLabel, "/onSuccess/spec/labels/-a", "-a"),
        ("{x-timeouts: {atempt: 5s}}", Reason::UnknownField, "/x-timeouts/atempt", "atempt"),
        ("{x-timeouts: {x-a: 5s}}", Reason::UnknownField, "/x-timeouts/x-a", "x-a"),
        ("{x-backoff: {factor: 0.5}}", Reason::OutOfRange, "/x-backoff/factor", "0.5"),
        ("{x-backoff: {factor: '.nan'}}", Reason::WrongType, "/x-backoff/factor", "'.nan'"),
        ("{x-backoff: {factor: NaN}}", Reason::OutOfRange, "/x-backoff/factor", "NaN"),
        ("{x-backoff: {jitter: Some}}", Reason::BadValue, "/x-backoff/jitter", "Some"),
        ("{x-priority: 2147483648}", Reason::OutOfRange, "/x-priority", "2147483648"),
        ("{x-waitFor: [{phase: b}]}", Reason::MissingField, "/x-waitFor/0", "{"),
        ("{x-waitFor: {manifest: A, phase: b}}", Reason::BadValue, "/x-waitFor/manifest", "A"),
        ("{x-onExhausted: Wait}", Reason::BadValue, "/x-onExhausted", "Wait"),
        ("{x-own: {a: 1, a: 2}}", Reason::DuplicateField, "/x-own/a", "a"),
        ("{x-own: 1, x-own: 2}", Reason::DuplicateField, "/x-own", "x-own"),
        ("{waitFor: , wait_for: }", Reason::DuplicateField, "/wait_for", "wait_for"),
        (&format!("{{description: {long}}}"), Reason::TooLarge, "/description", &long),
    ];
    for (spec, reason, pointer, span) in cases {
        assert_eq!(only(spec), (reason, format!("/0/spec{pointer}"), span.to_owned()), "{spec}");
    }
}

#[test]
fn each_rule_of_the_phase_has_its_reason_and_place() {
    let cases = [
        ("[{id: a}]", Reason::MissingField, "/0"),
        ("[{kind: Phase}]", Reason::MissingField, "/0"),
        ("[{kind: Phase, id: }]", Reason::MissingField, "/0"),
        ("[{kind: Phase, id: 5}]", Reason::WrongType, "/0/id"),
        ("[{kind: Phase, id: ''}]", Reason::BadId, "/0/id"),
        ("[{kind: Phase, id: \"a\\n\"}]", Reason::BadId, "/0/id"),
        ("[{Kind: Task, id: a}]", Reason::WrongKind, "/0/kind"),
        ("[{kind: phase, id: a}]", Reason::WrongKind, "/0/kind"),
        ("[{kind: Phase, ID: a, Id: b}]", Reason::DuplicateField, "/0/Id"),
        ("[{kind: Phase, id: a, waitFor: b}]", Reason::UnknownField, "/0/waitFor"),
        ("[5]", Reason::WrongType, "/0"),
        ("[{kind: Phase, id: a}, {Kind: Phase, Id: a}]", Reason::DuplicateId, "/1/Id"),
        ("{kind: Phase, id: a}", Reason::NotAManifest, ""),
        ("hello", Reason::NotAManifest, ""),
        ("", Reason::NotAManifest, ""),
        ("{apiVersion: pmp.dev/v2, kind: PhaseManifest, spec: {phases: []}}", Reason::BadValue, "/apiVersion"),
        ("{apiVersion: pmp.dev/v1alpha1, kind: ConfigMap, spec: {phases: []}}", Reason::NotAManifest, "/kind"),
        ("{apiVersion: pmp.dev/v1alpha1, kind: PhaseManifest, spec: {}}", Reason::MissingField, "/spec"),
        ("{apiVersion: pmp.dev/v1alpha1, kind: PhaseManifest}", Reason::MissingField, ""),
        (
            "{apiVersion: pmp.dev/v1alpha1, kind: PhaseManifest, spec: {phases: [{id: a}]}}",
            Reason::MissingField,
            "/spec/phases/0",
        ),
    ];
    for (text, reason, pointer) in cases {
        let found: Vec<_> = problems(text).into_iter().map(|p| (p.reason, p.pointer)).collect();
        assert_eq!(found, [(reason, pointer.to_owned())], "{text}");
    }
}

#[test]
fn every_problem_is_told_at_once_in_document_order() {
    let text = "- kind: Phase\n  id: a\n  spec:\n    waitFor: [b, nobody]\n    retry: {maxAttempts: 0}\n\
        - kind: Phase\n  id: b\n  spec:\n    waitFor: a\n    retrys: 3\n- kind: Pod\n- kind: Phase\n  id: a\n";
    let told: Vec<_> = problems(text).into_iter().map(|p| (p.reason, p.place.map(|p| p.line))).collect();
    assert_eq!(
        told,
        [
            (Reason::Cycle, Some(4)),
            (Reason::UnknownDependency, Some(4)),
            (Reason::OutOfRange, Some(5)),
            (Reason::UnknownField, Some(10)),
            (Reason::WrongKind, Some(11)),
            (Reason::DuplicateId, Some(13)),
        ]
    );
}

#[test]
fn cycle_names_every_member() {
    let text = "[{kind: Phase, id: a, spec: {waitFor: [x, b]}}, {kind: Phase, id: b, spec: {waitFor: c}},
        {kind: Phase, id: c, spec: {waitFor: {phases: [a]}}}, {kind: Phase, id: x}]";
    let problem = &problems(text)[0];
    assert_eq!(problem.reason, Reason::Cycle);
    assert_eq!(problem.pointer, "/0/spec/waitFor/1");
    assert!(problem.message.ends_with("a -> b -> c -> a"), "{}", problem.message);
}

#[test]
fn a_phase_with_mistakes_is_still_known_to_those_who_wait_for_it() {
    let text = "[{kind: Phase, id: a, spec: {retry: 5}}, {kind: Phase, id: b, spec: {waitFor: a}}]";
    assert_eq!(problems(text).len(), 1);
}

#[test]
fn hints_name_what_was_meant() {
    assert!(hint(&one("{depends_on: [b]}")).contains("`waitFor`"));
    assert!(hint(&one("{onFailur: {}}")).contains("`onFailure`"));
    assert!(
        hint("[{kind: Phase, id: preflight}, {kind: Phase, id: b, spec: {waitFor: [prefligth]}}]")
            .contains("`preflight`")
    );
    assert!(hint("[{kind: Phase, id: 5}]").contains("quotes"));
    assert!(hint("[{kind: Phase, name: a, id: b}]").contains("`id`"));
    assert!(problems(&one("{waitFor: {}, wait_for: {}}"))[0].message.contains("`waitFor` and as `wait_for`"));
}

#[test]
fn repeated_keys_of_json_are_found_with_their_place() {
    let told = told("[{\"kind\": \"Phase\",\n  \"id\": \"a\", \"id\": \"b\"}]");
    assert_eq!(told, [(Reason::DuplicateField, "/0/id".to_owned(), "\"id\"".to_owned())]);
}

#[test]
fn stored_values_are_told_with_pointers_of_the_resource() {
    let values = [json!({"kind": "Phase", "id": "a", "spec": {"waitFor": ["b"], "retry": {"max": 1}}})];
    let found = from_values(&values, OtherKinds::Refuse).unwrap_err();
    let pointers: Vec<_> = found.iter().map(|p| (p.reason, &*p.pointer)).collect();
    assert_eq!(
        pointers,
        [
            (Reason::UnknownField, "/spec/phases/0/spec/retry/max"),
            (Reason::UnknownDependency, "/spec/phases/0/spec/waitFor/0"),
        ]
    );
    assert!(found.iter().all(|p| p.place.is_none()));
    let mut deep = json!(1);
    for _ in 0..100 {
        deep = json!([deep]);
    }
    let found =
        from_values(&[json!({"kind": "Phase", "id": "a", "spec": {"x-own": deep}})], OtherKinds::Refuse).unwrap_err();
    assert_eq!((found[0].reason, &*found[0].pointer), (Reason::TooLarge, "/spec/phases/0"));
}
