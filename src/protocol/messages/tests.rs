use proptest::prelude::*;

use super::{Strategy, *};
use crate::protocol::{BODY_BYTES_MAX, TEXT_BYTES_MAX};

fn phase(id: &str) -> PhaseId {
    PhaseId::new(id).unwrap()
}

fn json(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn ack(phase_id: &str, accepted: bool, queued: bool) -> AckMessage {
    AckMessage {
        phase: phase(phase_id),
        accepted,
        queued,
        attempt: None,
        runtime: None,
        heartbeat: None,
        reason: None,
        now: None,
    }
}

#[test]
fn the_protocols_own_target_is_read_and_written_byte_for_byte() {
    let body = br#"{"phaseId":"setup","reason":"dependencies satisfied"}"#;
    let message = TargetMessage::parse(body).unwrap();
    assert_eq!(message.phase.as_str(), "setup");
    assert_eq!(message.attempt, None);
    assert_eq!(message.to_bytes(), body);
}

#[test]
fn the_protocols_own_ack_is_read_and_written_byte_for_byte() {
    let body = br#"{"phaseId":"setup","accepted":true,"queued":true}"#;
    let message = AckMessage::parse(body).unwrap();
    assert_eq!(message, ack("setup", true, true));
    assert_eq!(message.to_bytes(), body);
}

#[test]
fn the_protocols_own_state_is_read_and_written_byte_for_byte() {
    for status in ["running", "complete", "failed"] {
        let body = format!(r#"{{"phaseId":"preflight","status":"{status}","updated":"2025-07-19T20:00:00Z"}}"#);
        assert_eq!(json(&StateMessage::parse(body.as_bytes()).unwrap().to_bytes()), body);
    }
}

#[test]
fn the_protocols_own_start_and_control_are_read_and_written_byte_for_byte() {
    let body = br#"{"manifest":[],"dryRun":false}"#;
    assert_eq!(StartMessage::parse(body).unwrap().to_bytes(), body);
    for command in ["pause", "resume", "cancel"] {
        let body = format!(r#"{{"command":"{command}"}}"#);
        assert_eq!(json(&ControlMessage::parse(body.as_bytes()).unwrap().to_bytes()), body);
    }
}

#[test]
fn our_own_fields_carry_the_x_prefix() {
    let target = TargetMessage {
        phase: phase("setup"),
        reason: "dependencies satisfied".into(),
        attempt: Some(AttemptToken::received("t1")),
        not_after: Some("2026-01-02T03:04:05Z".parse().unwrap()),
        spec: Some(serde_json::json!({"kind": "Phase", "id": "setup", "spec": {}})),
    };
    assert_eq!(
        json(&target.to_bytes()),
        concat!(
            r#"{"phaseId":"setup","reason":"dependencies satisfied","x-attempt":"t1","#,
            r#""x-notAfter":"2026-01-02T03:04:05Z","x-phase":{"id":"setup","kind":"Phase","spec":{}}}"#
        )
    );
    assert_eq!(TargetMessage::parse(&target.to_bytes()).unwrap(), target);

    let full = AckMessage {
        attempt: Some(AttemptToken::received("t1")),
        runtime: Some("worker-1".into()),
        heartbeat: Some(Duration::from_secs(10)),
        ..ack("setup", true, false)
    };
    assert_eq!(
        json(&full.to_bytes()),
        concat!(
            r#"{"phaseId":"setup","accepted":true,"queued":false,"x-attempt":"t1","#,
            r#""x-runtime":"worker-1","x-heartbeat":"10s"}"#
        )
    );
    assert_eq!(AckMessage::parse(&full.to_bytes()).unwrap(), full);

    let start = StartMessage {
        manifest: vec![],
        dry_run: false,
        revision: Some(2),
        strategy: Some(Strategy::Runtime),
        kept: vec![phase("a")],
    };
    assert_eq!(
        json(&start.to_bytes()),
        r#"{"manifest":[],"dryRun":false,"x-revision":2,"x-strategy":"Runtime","x-kept":["a"]}"#
    );
    assert_eq!(StartMessage::parse(&start.to_bytes()).unwrap(), start);
}

#[test]
fn every_command_survives_the_wire() {
    for command in Command::ALL {
        let message = ControlMessage {
            command,
            phase: Some(phase("a b")),
            attempt: Some(AttemptToken::received("t1")),
            runtime: Some("r".into()),
        };
        assert_eq!(ControlMessage::parse(&message.to_bytes()).unwrap(), message);
    }
    assert!(ControlMessage::parse(br#"{"command":"explode"}"#).is_err());
}

#[test]
fn an_ack_without_accepted_is_malformed_and_without_queued_is_not_queued() {
    assert!(AckMessage::parse(br#"{"phaseId":"a"}"#).is_err());
    assert!(!AckMessage::parse(br#"{"phaseId":"a","accepted":true}"#).unwrap().queued);
}

#[test]
fn the_protocols_fields_are_also_read_in_snake_case_but_not_twice() {
    assert_eq!(AckMessage::parse(br#"{"phase_id":"a","accepted":true}"#).unwrap(), ack("a", true, false));
    assert!(AckMessage::parse(br#"{"phase_id":"a","phaseId":"a","accepted":true}"#).is_err());
    assert!(StartMessage::parse(br#"{"manifest":[],"dry_run":true}"#).unwrap().dry_run);
}

#[test]
fn unknown_fields_are_ignored_and_null_is_absent() {
    let body = br#"{"phaseId":"a","status":"running","x-runtime":null,"message":null,"host":{"deep":[1]}}"#;
    let message = StateMessage::parse(body).unwrap();
    assert_eq!((message.runtime, message.message, message.updated), (None, None, None));
}

#[test]
fn a_status_is_one_of_three_words() {
    for status in ["Complete", "completed", "", "queued"] {
        assert!(StateMessage::parse(format!(r#"{{"phaseId":"a","status":"{status}"}}"#).as_bytes()).is_err());
    }
}

#[test]
fn a_heartbeat_is_a_duration_or_a_number_of_seconds() {
    let read = |heartbeat: &str| {
        AckMessage::parse(format!(r#"{{"phaseId":"a","accepted":true,"x-heartbeat":{heartbeat}}}"#).as_bytes())
            .map(|message| message.heartbeat)
    };
    assert_eq!(read(r#""500ms""#).unwrap(), Some(Duration::from_millis(500)));
    assert_eq!(read(r#""1m""#).unwrap(), Some(Duration::from_mins(1)));
    assert_eq!(read("10").unwrap(), Some(Duration::from_secs(10)));
    assert_eq!(read("0.5").unwrap(), Some(Duration::from_millis(500)));
    for wrong in ["-1", "1e300", r#""10 parsecs""#, r#""367000h""#, r#""99999999999999999999s""#, "[]"] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_time_that_cannot_be_read_does_not_lose_the_report() {
    let message = StateMessage::parse(br#"{"phaseId":"a","status":"complete","updated":"yesterday"}"#).unwrap();
    assert_eq!(message.updated, None);
}

#[test]
fn a_long_message_is_cut_and_a_long_name_is_refused() {
    let long = "é".repeat(TEXT_BYTES_MAX);
    let body = format!(r#"{{"phaseId":"a","status":"failed","message":"{long}"}}"#);
    let message = StateMessage::parse(body.as_bytes()).unwrap().message.unwrap();
    assert_eq!(message.len(), TEXT_BYTES_MAX);

    let body = format!(r#"{{"phaseId":"a","status":"failed","x-runtime":"{}"}}"#, "r".repeat(254));
    assert!(StateMessage::parse(body.as_bytes()).is_err());
    let body = format!(r#"{{"phaseId":"{}","status":"failed"}}"#, "p".repeat(254));
    assert!(StateMessage::parse(body.as_bytes()).is_err());
}

#[test]
fn a_body_past_its_size_or_depth_is_refused_with_a_short_reason() {
    let big = vec![b' '; BODY_BYTES_MAX + 1];
    assert_eq!(AckMessage::parse(&big), Err(MessageError::TooLarge { size_bytes: BODY_BYTES_MAX + 1 }));

    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(StartMessage::parse(format!(r#"{{"manifest":{}}}"#, nested(1000)).as_bytes()).is_err());
    let ignored = format!(r#"{{"phaseId":"a","accepted":true,"x":{}}}"#, nested(100_000));
    assert!(AckMessage::parse(ignored.as_bytes()).is_ok(), "what is ignored is skipped without recursion");

    let wordy = format!(r#"{{"phaseId":"a","accepted":"{}\n"}}"#, "w".repeat(10_000));
    let reason = AckMessage::parse(wordy.as_bytes()).unwrap_err().to_string();
    assert!(reason.len() < 300 && !reason.contains('\n'), "{reason}");
}

#[test]
fn an_acknowledgement_of_a_stream_is_no_grant() {
    assert!(GrantMessage::parse(br#"{"stream":"PMP","seq":2}"#).is_err());
    assert!(GrantMessage::parse(br#"{"x-granted":true}"#).unwrap().granted);
    assert_eq!(GrantMessage { granted: false }.to_bytes(), br#"{"x-granted":false}"#);
}

#[test]
fn an_ack_becomes_what_the_engine_takes() {
    assert_eq!(ack("a", false, true).into_input(None).answer, Answer::Declined);
    assert_eq!(ack("a", true, true).into_input(None).answer, Answer::AcceptedQueued);
    let asked = ack("a", true, false).into_input(Some(AskId(7)));
    assert_eq!((asked.answer, asked.ask), (Answer::Accepted, Some(AskId(7))));
}

#[test]
fn a_failure_may_say_whether_and_when_to_try_again() {
    let retry = |fields: &str| {
        let body = format!(r#"{{"phaseId":"a","status":"failed"{fields}}}"#);
        StateMessage::parse(body.as_bytes()).unwrap().into_input().retry
    };
    assert_eq!(retry(""), RetryAdvice::AsConfigured);
    assert_eq!(retry(r#","x-retryable":true"#), RetryAdvice::AsConfigured);
    assert_eq!(retry(r#","x-retryAfter":"5s""#), RetryAdvice::After(Duration::from_secs(5)));
    assert_eq!(retry(r#","x-retryAfter":"5s","x-retryable":false"#), RetryAdvice::Never);
}

#[test]
fn a_log_line_of_an_unknown_level_is_information() {
    let line = LogMessage::parse(br#"{"level":"notice","message":"hello"}"#).unwrap();
    assert_eq!((line.level, line.phase), (LogLevel::Info, None));
    assert_eq!(LogMessage::parse(br#"{"level":"WARN","message":""}"#).unwrap().level, LogLevel::Warning);
}

#[test]
fn an_event_says_only_what_it_knows() {
    let event = EventMessage {
        event: "PhaseFailed".into(),
        phase: Some(phase("a")),
        state: Some("Failed".into()),
        reason: Some("RuntimeFailed".into()),
        message: None,
        timestamp: None,
        revision: Some(1),
        run: None,
        attempt: None,
    };
    let body = r#"{"event":"PhaseFailed","phaseId":"a","state":"Failed","reason":"RuntimeFailed","x-revision":1}"#;
    assert_eq!(json(&event.to_bytes()), body);
    assert_eq!(EventMessage::parse(body.as_bytes()).unwrap(), event);
}

proptest! {
    #[test]
    fn no_body_makes_a_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = AckMessage::parse(&body);
        let _ = StateMessage::parse(&body);
        let _ = ControlMessage::parse(&body);
        let _ = TargetMessage::parse(&body);
    }

    #[test]
    fn any_report_survives_the_wire(id in "\\PC{1,40}", message in proptest::option::of(".{0,200}"), progress in proptest::option::of(".{0,20}")) {
        prop_assume!(PhaseId::new(&id).is_ok());
        let report = StateMessage {
            phase: phase(&id),
            status: ReportStatus::Failed,
            updated: None,
            attempt: None,
            runtime: None,
            progress,
            message,
            retryable: None,
            retry_after: None,
            heartbeat: None,
        };
        prop_assert_eq!(StateMessage::parse(&report.to_bytes()).unwrap(), report);
    }
}
