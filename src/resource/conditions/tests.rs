//! The design's table, row by row.

use std::collections::HashSet;

use super::*;

/// Every row of the design's table: the situation, then Accepted, Ready, Reconciling, Stalled, Succeeded, Completed.
fn table() -> Vec<(Situation, [&'static str; 6])> {
    let held = || vec!["gate".to_owned()];
    let refused = |refusal| Situation::Refused { refusal, message: "no".to_owned() };
    let mut table = vec![
        (Situation::Running, ["True", "Unknown", "True", "", "Unknown", "False"]),
        (Situation::Stopping, ["True", "Unknown", "True", "", "Unknown", "False"]),
        (Situation::HeldWithOthers { phases: held() }, ["True", "Unknown", "True", "", "Unknown", "False"]),
        (Situation::NoRuntime, ["True", "Unknown", "True", "", "Unknown", "False"]),
        (Situation::Contested, ["True", "Unknown", "True", "", "Unknown", "False"]),
        (Situation::Suspended, ["True", "Unknown", "", "", "Unknown", "False"]),
        (Situation::Staged, ["True", "Unknown", "", "", "Unknown", "False"]),
        (Situation::Succeeded, ["True", "True", "", "", "True", "True"]),
        (Situation::SucceededWithIgnored { phases: held() }, ["True", "True", "", "", "True", "True"]),
        (Situation::Planned, ["True", "True", "", "", "Unknown", "True"]),
        (Situation::Failed { phases: held() }, ["True", "False", "", "True", "False", "True"]),
        (Situation::Cancelled, ["True", "False", "", "True", "False", "True"]),
        (Situation::HeldAlone { phases: held() }, ["True", "False", "", "True", "Unknown", "False"]),
    ];
    let stuck = ["False", "False", "", "True", "Unknown", "False"];
    table.extend(Refusal::ALL.into_iter().map(|refusal| (refused(refusal), stuck)));
    table
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn status(conditions: &[Condition], kind: ConditionType) -> &str {
    conditions.iter().find(|known| known.type_ == kind.as_str()).map_or("", |known| known.status.as_str())
}

#[test]
fn every_situation_has_its_row_of_the_table() {
    for (situation, row) in table() {
        let made = conditions(&situation, Availability::Unknown, &BusStanding::Unknown, &[], 3, at(1));
        let found = [0, 1, 2, 3, 4, 5].map(|i| status(&made, ConditionType::ALL[i]));
        assert_eq!(found, row, "{situation:?}");
        assert!(made.iter().all(|known| known.observed_generation == Some(3)));
    }
}

#[test]
fn reconciling_and_stalled_never_stand_together() {
    for (situation, _) in table() {
        let made = conditions(&situation, Availability::Unknown, &BusStanding::Unknown, &[], 1, at(1));
        let both = [ConditionType::Reconciling, ConditionType::Stalled].map(|kind| status(&made, kind));
        assert_ne!(both, ["True", "True"], "{situation:?}");
    }
}

#[test]
fn times_move_only_when_a_status_flips() {
    let running = conditions(&Situation::Running, Availability::Unknown, &BusStanding::Unknown, &[], 1, at(1));
    let held = Situation::HeldWithOthers { phases: vec!["gate".to_owned()] };
    let held = conditions(&held, Availability::Available, &BusStanding::Unknown, &running, 2, at(2));
    for (before, after) in running.iter().zip(&held) {
        let moved = before.last_transition_time != after.last_transition_time;
        assert_eq!(moved, before.status != after.status, "{}", after.type_);
    }
    assert_eq!(status(&held, ConditionType::RuntimeAvailable), "True");
    let done = conditions(&Situation::Succeeded, Availability::Available, &BusStanding::Unknown, &held, 2, at(3));
    let again = conditions(&Situation::Running, Availability::Available, &BusStanding::Unknown, &done, 2, at(4));
    let reconciling = again.iter().find(|known| known.type_ == "Reconciling").expect("running");
    assert_eq!(reconciling.last_transition_time, Time(at(4)), "a condition that was absent begins anew");
}

#[test]
fn conditions_survive_the_way_through_the_api_server() {
    let now = "2026-01-02T12:00:00.999999Z".parse().expect("a time");
    let made = conditions(&Situation::Running, Availability::Available, &BusStanding::Unknown, &[], 1, now);
    let json = serde_json::to_string(&made).expect("JSON");
    assert_eq!(serde_json::from_str::<Vec<Condition>>(&json).expect("ours"), made);
}

#[test]
fn reasons_and_types_are_distinct_words() {
    let reasons: HashSet<&str> = ConditionReason::ALL.into_iter().map(ConditionReason::as_str).collect();
    let types: HashSet<&str> = ConditionType::ALL.into_iter().map(ConditionType::as_str).collect();
    assert_eq!((reasons.len(), types.len()), (ConditionReason::ALL.len(), ConditionType::ALL.len()));
    let word =
        |word: &&str| word.bytes().all(|byte| byte.is_ascii_alphabetic()) && word.as_bytes()[0].is_ascii_uppercase();
    assert!(reasons.iter().all(word));
}

#[test]
fn messages_are_bounded_and_hold_no_digits() {
    for (situation, _) in table() {
        let message = situation.message();
        assert!(!message.is_empty() && !message.contains(|c: char| c.is_ascii_digit()), "{message}");
        assert!(!message.ends_with('.') && !situation.state().is_empty());
    }
    let endless = Situation::Refused { refusal: Refusal::InvalidManifest, message: "ä".repeat(10_000) };
    assert_eq!(endless.message().len(), CONDITION_MESSAGE_BYTES_MAX);
    let many = Situation::Failed { phases: vec!["p".to_owned(); 7] };
    assert_eq!(many.message(), "failed at phases p, p, p, p, p and 2 more");
}
