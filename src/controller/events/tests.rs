//! Which outputs of real sessions are told, and how.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{story::tale, *};
use crate::{
    engine::{Input, Note, NoteKind, OffersGate, Report, ReportStatus, RetryAdvice, Settings, Strategy},
    manifest::{OtherKinds, PhaseId, from_values},
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn session(phases: &[Value]) -> Session {
    let plan = Arc::new(from_values(phases, OtherKinds::Refuse).unwrap().0);
    Session::start("uid", plan, 1, Strategy::Hybrid, Settings::default(), at(0))
}

fn report(phase: &str, status: ReportStatus, message: &str) -> Input {
    Input::Report(Report {
        phase: PhaseId::new(phase).unwrap(),
        status,
        token: None,
        runtime: Some("worker".to_owned()),
        progress: None,
        message: Some(message.to_owned()),
        retry: RetryAdvice::AsConfigured,
        heartbeat: None,
    })
}

/// The tales of one input after the other, one a second.
fn told(session: &mut Session, inputs: Vec<Input>) -> Vec<Tale> {
    let mut tales = Vec::new();
    let mut drain = |session: &mut Session| {
        while let Some(output) = session.poll_output() {
            tales.extend(tale(&output, session));
        }
    };
    drain(session);
    for (second, input) in (1..).zip(inputs) {
        session.handle(input, at(second));
        drain(session);
    }
    tales
}

fn reasons(tales: &[Tale]) -> Vec<&'static str> {
    tales.iter().map(|tale| tale.reason.as_str()).collect()
}

fn open() -> Vec<Input> {
    vec![Input::Stored, Input::Offers(OffersGate::Open)]
}

#[test]
fn a_small_plan_tells_its_whole_story() {
    let mut session = session(&[
        json!({"kind": "Phase", "id": "a", "spec": {}}),
        json!({"kind": "Phase", "id": "b", "spec": {"waitFor": ["a"], "onSuccess": {"spec": {"message": ["all\nup"]}}}}),
    ]);
    let mut inputs = open();
    for phase in ["a", "b"] {
        inputs.extend([report(phase, ReportStatus::Running, ""), report(phase, ReportStatus::Complete, "")]);
    }
    let tales = told(&mut session, inputs);
    let expected =
        ["Started", "PhaseRunning", "PhaseComplete", "PhaseRunning", "PhaseComplete", "OnSuccess", "Succeeded"];
    assert_eq!(reasons(&tales), expected);
    assert_eq!(tales[1].note, "phase a runs on worker");
    assert_eq!(tales[5].note, "phase b: all up");
    assert_eq!(tales[6].note, "2 of 2 phases are done");
    assert!(tales.iter().all(|tale| tale.weight == Weight::Normal));
}

#[test]
fn a_retry_a_failure_and_its_handler_are_warnings() {
    let mut session = session(&[json!({"kind": "Phase", "id": "a", "spec": {
        "retry": {"maxAttempts": 2},
        "onFailure": {"spec": {"message": ["call", "somebody"]}},
    }})]);
    let mut inputs = open();
    inputs.extend([report("a", ReportStatus::Running, ""), report("a", ReportStatus::Failed, "no disk")]);
    let mut tales = told(&mut session, inputs);
    // The second attempt: the pause is over, and the same runtime fails again.
    let due = session.poll_timeout().unwrap();
    for input in [Input::Tick, report("a", ReportStatus::Failed, "no disk")] {
        session.handle(input, due);
        tales.extend(told(&mut session, Vec::new()));
    }
    assert_eq!(
        reasons(&tales),
        ["Started", "PhaseRunning", "PhaseBackingOff", "PhaseRunning", "PhaseFailed", "OnFailure", "Failed"]
    );
    assert_eq!(tales[3].note, "phase a runs on worker, attempt 2");
    assert!(tales.iter().skip(4).chain([&tales[2]]).all(|tale| tale.weight == Weight::Warning));
    assert_eq!(tales[2].note, "phase a failed at attempt 1 and is tried again: RuntimeFailed: no disk");
    assert_eq!(tales[5].note, "phase a: call; somebody");
    assert_eq!(tales[6].note, "0 of 1 phases are done; failed at a");
}

#[test]
fn a_large_plan_tells_no_phase_s_success() {
    let phase = |n: usize| json!({"kind": "Phase", "id": format!("p{n}"), "spec": {}});
    let phases: Vec<Value> = (0..=TOLD_IN_FULL_MAX).map(phase).collect();
    let mut session = session(&phases);
    let mut inputs = open();
    for n in 0..=TOLD_IN_FULL_MAX {
        let id = format!("p{n}");
        inputs.extend([report(&id, ReportStatus::Running, ""), report(&id, ReportStatus::Complete, "")]);
    }
    assert_eq!(reasons(&told(&mut session, inputs)), ["Started", "Succeeded"]);
}

#[test]
fn notes_that_need_a_person_are_warnings_and_the_others_are_not_told() {
    let session = session(&[json!({"kind": "Phase", "id": "a", "spec": {}})]);
    let of = |kind| tale(&Output::Note(Note { kind, phase: "a".to_owned() }), &session);
    for kind in [NoteKind::DoubleAccept, NoteKind::OrderViolated, NoteKind::ClockSkew] {
        let tale = of(kind).unwrap();
        assert_eq!((tale.reason.as_str(), tale.weight), (kind.as_str(), Weight::Warning));
    }
    for kind in [NoteKind::UnknownPhase, NoteKind::StaleToken, NoteKind::NoEffect, NoteKind::NotWanted] {
        assert_eq!(of(kind), None);
    }
}

#[test]
fn a_note_is_one_line_that_the_api_server_takes() {
    let tale = Tale::new(Reason::Failed, Weight::Warning, String::new(), &format!("a\r\nb\u{7}{}", "é".repeat(2000)));
    assert!(tale.note.len() <= NOTE_BYTES_MAX && !tale.note.contains(char::is_control));
}

#[test]
fn the_same_course_has_the_same_ids_and_a_retry_has_others() {
    let phases = [json!({"kind": "Phase", "id": "a", "spec": {}})];
    let failing = || {
        let mut inputs = open();
        inputs.extend([report("a", ReportStatus::Running, ""), report("a", ReportStatus::Failed, "")]);
        inputs
    };
    let ids = |tales: &[Tale]| tales.iter().map(|tale| tale.id.clone()).collect::<Vec<_>>();
    let (mut one, mut two) = (session(&phases), session(&phases));
    let first = ids(&told(&mut one, failing()));
    assert_eq!(first, ids(&told(&mut two, failing())));
    let retry = crate::engine::Request {
        token: "t".to_owned(),
        action: crate::engine::RequestAction::Retry,
        phase: Some(PhaseId::new("a").unwrap()),
    };
    let mut again = vec![Input::Requests(vec![retry])];
    again.extend(failing());
    let second = ids(&told(&mut one, again));
    assert!(!second.is_empty() && second.iter().all(|id| !first.contains(id)), "{first:?} {second:?}");
}
