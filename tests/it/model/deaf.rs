//! What a clock may say of a session that nobody could report to, told without chance.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use pmp::{
    engine::{
        AttemptToken, Input, OffersGate, PhaseReason, PhaseState, Report, ReportStatus, RetryAdvice, Session, Settings,
        Strategy, Timeouts, Verdict,
    },
    manifest::{OtherKinds, PhaseId, Plan, from_values},
};
use serde_json::json;

const UID: &str = "0b8f3f0e-uid";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn plan() -> Arc<Plan> {
    Arc::new(from_values(&[json!({"kind": "Phase", "id": "a", "spec": {}})], OtherKinds::Refuse).unwrap().0)
}

/// Offers are given up after 5 s, attempts and revisions as asked, and a cancelled attempt at once.
fn settings(attempt: Option<u64>, revision: Option<u64>) -> Settings {
    let timeouts = Timeouts {
        offer: Duration::from_secs(5),
        attempt: attempt.map(Duration::from_secs),
        revision: revision.map(Duration::from_secs),
        cancel: Duration::from_secs(1),
        ..Timeouts::default()
    };
    Settings { timeouts, ..Settings::default() }
}

fn feed(session: &mut Session, second: i64, input: Input) {
    session.handle(input, at(second));
    while session.poll_output().is_some() {}
}

fn report(status: ReportStatus) -> Input {
    let phase = PhaseId::new("a").unwrap();
    Input::Report(Report {
        token: Some(AttemptToken::new(UID, &phase, 1, 1)),
        phase,
        status,
        runtime: Some("worker".to_owned()),
        progress: None,
        message: None,
        retry: RetryAdvice::AsConfigured,
        heartbeat: None,
    })
}

/// `a` runs since second 1.
fn running(settings: Settings) -> Session {
    let mut session = Session::start(UID, plan(), 1, Strategy::Hybrid, settings, at(0));
    while session.poll_output().is_some() {}
    for input in [Input::Stored, Input::Offers(OffersGate::Open), report(ReportStatus::Running)] {
        feed(&mut session, 1, input);
    }
    assert_eq!(state(&session), PhaseState::Running);
    session
}

fn state(session: &Session) -> PhaseState {
    session.record().phases[0].state
}

/// The link is back: who holds what is asked before the gate opens.
fn reconnect(session: &mut Session, second: i64) {
    feed(session, second, Input::Resync);
    feed(session, second, Input::Offers(OffersGate::Open));
}

#[test]
fn an_attempt_that_ended_while_the_bus_was_away_is_not_timed_out() {
    let mut session = running(settings(Some(60), None));
    feed(&mut session, 10, Input::Offers(OffersGate::Deaf));
    assert_eq!(session.poll_timeout(), None, "time alone decides nothing");
    feed(&mut session, 62, Input::Tick);
    feed(&mut session, 92, Input::Tick);
    reconnect(&mut session, 100);
    assert_eq!(session.poll_timeout(), Some(at(105)));
    feed(&mut session, 101, report(ReportStatus::Complete));
    assert_eq!((state(&session), session.verdict()), (PhaseState::Complete, Some(Verdict::Succeeded)));
}

#[test]
fn an_attempt_of_which_nobody_says_anything_once_the_bus_is_back_is_timed_out() {
    let mut session = running(settings(Some(60), None));
    feed(&mut session, 10, Input::Offers(OffersGate::Deaf));
    reconnect(&mut session, 100);
    feed(&mut session, 104, Input::Tick);
    assert_eq!(state(&session), PhaseState::Running);
    feed(&mut session, 105, Input::Tick);
    assert_eq!(state(&session), PhaseState::Cancelling);
    assert_eq!(session.record().phases[0].reason, Some(PhaseReason::AttemptTimeout));
}

#[test]
fn an_attempt_that_ended_while_no_operator_ran_is_not_timed_out_before_the_bus_is_reached() {
    let record = running(settings(Some(60), None)).record();
    let mut session = Session::restore(UID, plan(), record, settings(Some(60), None), at(70));
    while session.poll_output().is_some() {}
    feed(&mut session, 80, Input::Tick);
    feed(&mut session, 90, Input::Tick);
    reconnect(&mut session, 110);
    feed(&mut session, 112, report(ReportStatus::Complete));
    assert_eq!(session.verdict(), Some(Verdict::Succeeded));
}

#[test]
fn a_revision_is_not_timed_out_while_runtimes_are_asked_what_they_hold() {
    let mut session = running(settings(None, Some(60)));
    feed(&mut session, 10, Input::Offers(OffersGate::Deaf));
    feed(&mut session, 62, Input::Tick);
    reconnect(&mut session, 100);
    feed(&mut session, 104, Input::Tick);
    assert_eq!(state(&session), PhaseState::Running);
    feed(&mut session, 105, Input::Tick);
    assert_eq!(session.record().phases[0].reason, Some(PhaseReason::RevisionTimeout));
}

#[test]
fn a_store_that_is_away_stops_no_clock() {
    let mut session = running(settings(Some(60), None));
    feed(&mut session, 10, Input::Offers(OffersGate::Closed));
    feed(&mut session, 61, Input::Tick);
    assert_eq!(state(&session), PhaseState::Cancelling);
}
