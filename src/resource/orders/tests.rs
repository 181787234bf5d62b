//! What people write, and what the engine is told.

use serde_json::json;

use super::*;

fn spec(written: serde_json::Value) -> PhaseManifestSpec {
    serde_json::from_value(written).expect("a spec that the schema takes")
}

fn pointers(written: serde_json::Value) -> Vec<String> {
    let problems = Orders::new(&spec(written)).expect_err("something wrong");
    problems.into_iter().map(|problem| problem.pointer).collect()
}

#[test]
fn an_empty_spec_is_the_engines_defaults() {
    let empty = spec(json!({}));
    let orders = Orders::new(&empty).expect("nothing wrong");
    assert_eq!(orders.settings, Settings::default());
    assert_eq!(orders.manifest, ManifestSource::Inline(None));
    assert_eq!((orders.connection, orders.session_id, orders.revision_history_limit), ("default", None, 10));
}

#[test]
fn empty_texts_nulls_and_zeros_are_absent() {
    let written = spec(json!({
        "shutdown": "", "targetPhase": "", "parallelism": 0, "sessionId": "", "connection": "", "phases": null,
        "requests": null, "ttlAfterFinished": "", "timeouts": {"start": "", "attempt": null}, "backoff": {"max": ""},
    }));
    let empty = spec(json!({}));
    assert_eq!(Orders::new(&written), Orders::new(&empty));
}

#[test]
fn every_setting_reaches_the_engine() {
    let written = spec(json!({
        "suspend": true, "shutdown": "Drain", "targetPhase": "b", "parallelism": 3, "failurePolicy": "Isolate",
        "strategy": "Directed", "updatePolicy": "Replace", "staged": true, "dryRun": true, "sessionId": "s-1",
        "connection": "edge", "ttlAfterFinished": 0, "revisionHistoryLimit": 0,
        "backoff": {"initial": "300ms", "factor": "1.5", "max": 60, "jitter": "None"},
        "timeouts": {"offer": "2s", "start": "1m", "attempt": "1h30m", "heartbeat": "15", "cancel": 1, "revision": "1h"},
        "requests": [{"token": "t1", "action": "Skip", "phase": "a"}, {"token": "t2", "action": "Restart"}],
    }));
    let orders = Orders::new(&written).expect("nothing wrong");
    let seconds = Duration::from_secs;
    let settings = Settings {
        pace: Pace::Suspended,
        shutdown: Some(Shutdown::Drain),
        target_phase: PhaseId::new("b").ok(),
        parallelism: NonZeroU32::new(3),
        failure_policy: FailurePolicy::Isolate,
        backoff: Backoff { initial: Duration::from_millis(300), factor: 1.5, max: seconds(60), jitter: Jitter::None },
        timeouts: Timeouts {
            offer: seconds(2),
            start: Some(seconds(60)),
            attempt: Some(seconds(5400)),
            heartbeat: Some(seconds(15)),
            cancel: seconds(1),
            revision: Some(seconds(3600)),
        },
    };
    assert_eq!(orders.settings, settings);
    assert_eq!((orders.strategy, orders.update_policy), (Strategy::Directed, UpdatePolicy::Replace));
    assert_eq!((orders.staged, orders.dry_run), (true, true));
    assert_eq!((orders.session_id, orders.connection), (Some("s-1"), "edge"));
    assert_eq!((orders.ttl_after_finished, orders.revision_history_limit), (Some(Duration::ZERO), 0));
    let asked: Vec<_> = orders.requests.iter().map(|asked| (asked.token.as_str(), asked.action)).collect();
    assert_eq!(asked, [("t1", RequestAction::Skip), ("t2", RequestAction::Restart)]);
}

#[test]
fn every_problem_is_answered_at_once_with_its_place() {
    let found = pointers(json!({
        "phases": [], "manifestFrom": {"configMap": {"name": "a", "key": "b"}},
        "targetPhase": "a\nb", "sessionId": "a.b", "ttlAfterFinished": "soon",
        "backoff": {"initial": "9000000000h", "factor": 0}, "timeouts": {"offer": 0},
        "requests": [{"token": "t", "action": "Retry"}, {"token": "u", "action": "Restart", "phase": "a"}],
    }));
    let expected = [
        "/spec/manifestFrom",
        "/spec/targetPhase",
        "/spec/backoff/initial",
        "/spec/backoff/factor",
        "/spec/timeouts/offer",
        "/spec/requests/0/phase",
        "/spec/requests/1/phase",
        "/spec/ttlAfterFinished",
        "/spec/sessionId",
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_target_phase_that_the_manifest_lacks_is_a_problem() {
    let written = spec(json!({"targetPhase": "b"}));
    let orders = Orders::new(&written).expect("nothing wrong by itself");
    let problems = orders.problems_with(&Plan::default());
    assert_eq!(problems.iter().map(|problem| problem.pointer.as_str()).collect::<Vec<_>>(), ["/spec/targetPhase"]);
}
