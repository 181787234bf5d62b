//! The law, through the serialized form, and the bounds.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use proptest::{
    collection::vec,
    option,
    prelude::{Just, ProptestConfig, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest},
    strategy::Strategy as Generator,
};
use serde_json::{Value, json};

use super::*;
use crate::resource::{
    BusPosition, ConditionReason, Holder, Moment, PhaseManifestSpec, PhaseManifestStatus, PhaseStatus, ProjectError,
    RestoreError, Span, restore, status_patch,
};
use crate::{
    engine::{
        Availability, Counts, Input, Output, PhaseReason, PhaseRecord, PhaseState, Record, Report, ReportStatus,
        Request, RequestAction, RequestRecord, RequestResult, RetryAdvice, Session, Settings, Strategy, Verdict,
    },
    manifest::{ExternalWait, InstanceMode, Phase, PhaseId, PhaseSpec, Plan, WaitFor},
};

/// Room for whatever these tests make.
const ROOMY: usize = usize::MAX;

/// Phases with their modes and what they wait for, all of it before them.
fn plan(phases: &[(PhaseId, InstanceMode, Vec<PhaseId>)]) -> Plan {
    let phase = |(id, instance_mode, waits): &(PhaseId, InstanceMode, Vec<PhaseId>)| {
        let wait_for = WaitFor { phases: waits.clone(), timeout: None };
        Phase { id: id.clone(), spec: PhaseSpec { instance_mode: *instance_mode, wait_for, ..PhaseSpec::default() } }
    };
    Plan::new(phases.iter().map(phase).collect()).expect("waits go backwards only")
}

fn numbered(phases: usize) -> Plan {
    let id = |i: usize| PhaseId::new(&format!("phase-{i}")).expect("printable");
    plan(&(0..phases).map(|i| (id(i), InstanceMode::Immediate, Vec::new())).collect::<Vec<_>>())
}

fn row(id: &PhaseId, state: PhaseState) -> PhaseRecord {
    outcomes::fresh(id, state, 1, noon())
}

fn noon() -> Timestamp {
    "2026-01-02T12:00:00.123Z".parse().expect("a time")
}

/// A record of the plan with every phase in one state.
fn record(plan: &Plan, state: PhaseState) -> Record {
    Record {
        revision: 1,
        strategy: Strategy::Hybrid,
        started_at: noon(),
        finished_at: None,
        verdict: None,
        paused_since: None,
        paused_total: Duration::ZERO,
        availability: Availability::Unknown,
        heard: false,
        timed_out: false,
        runs_removed: 0,
        phases: plan.phases().iter().map(|phase| row(&phase.id, state)).collect(),
        requests: Vec::new(),
    }
}

/// What the API server gives back.
fn stored(status: &PhaseManifestStatus) -> PhaseManifestStatus {
    let patched = status_patch(status);
    let mut object = json!({"status": {"observedGeneration": -1}});
    merge(&mut object, &patched);
    serde_json::from_value(object["status"].take()).expect("what we write we can read")
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        match value {
            Value::Null => drop(target.as_object_mut().expect("made one above").remove(name)),
            value => merge(&mut target[name], value),
        }
    }
}

fn arb_time() -> impl Generator<Value = Timestamp> {
    (0_i64..7_258_118_400_000).prop_map(|ms| Timestamp::from_millisecond(ms).expect("before the year 2200"))
}

fn arb_span() -> impl Generator<Value = Duration> {
    (0_u64..100_000_000_000).prop_map(Duration::from_millis)
}

fn arb_id() -> impl Generator<Value = PhaseId> {
    "[ -~äß漢🙂]{1,20}".prop_map(|text| PhaseId::new(&text).expect("printable and short"))
}

fn arb_row(id: PhaseId) -> impl Generator<Value = PhaseRecord> {
    // Mostly what sessions are made of, sometimes anything at all.
    let counters = (prop_oneof![4 => Just(1_u32), 1 => any::<u32>()], any::<u32>(), any::<u32>());
    let words = (
        prop::sample::select(&PhaseState::ALL[..]),
        option::of(prop::sample::select(&PhaseReason::ALL[..])),
        prop_oneof![2 => Just(String::new()), 1 => any::<String>()],
        option::of(any::<String>()),
        option::of(any::<String>()),
    );
    let times =
        (arb_time(), option::of(arb_time()), option::of(arb_time()), option::of(arb_time()), option::of(arb_span()));
    let waits = (
        vec(arb_id(), 0..3),
        vec((any::<String>(), arb_id()).prop_map(|(manifest, phase)| ExternalWait { manifest, phase }), 0..2),
    );
    let flags = prop_oneof![2 => Just([false; 4]), 1 => any::<[bool; 4]>()];
    (counters, words, times, waits, flags).prop_map(move |(counters, words, times, waits, flags)| PhaseRecord {
        id: id.clone(),
        state: words.0,
        run: counters.0,
        attempt: counters.1,
        offers: counters.2,
        reason: words.1,
        message: words.2,
        blocked_by: waits.0,
        runtime: words.3,
        progress: words.4,
        since: times.0,
        due: times.1,
        started_at: times.2,
        finished_at: times.3,
        released: waits.1,
        ignored: flags[0],
        used: flags[1],
        superseded: flags[2],
        tokenless: flags[3],
        heartbeat: times.4,
    })
}

/// One phase as it stands: untouched, or with an arbitrary row.
fn arb_phase(started_at: Timestamp) -> impl Generator<Value = (InstanceMode, PhaseRecord)> {
    let mode = prop_oneof![Just(InstanceMode::Immediate), Just(InstanceMode::OnUse)];
    (arb_id(), mode).prop_flat_map(move |(id, mode)| {
        let untouched = prop::sample::select(vec![PhaseState::Waiting, PhaseState::Idle]);
        let untouched =
            (untouched, Just(id.clone())).prop_map(move |(state, id)| outcomes::fresh(&id, state, 1, started_at));
        (Just(mode), prop_oneof![untouched, arb_row(id)])
    })
}

fn arb_record() -> impl Generator<Value = (Plan, Record)> {
    let clocks = (arb_time(), option::of(arb_time()), option::of(arb_time()), arb_span());
    let words = (
        prop::sample::select(vec![Strategy::Hybrid, Strategy::Directed, Strategy::Runtime]),
        option::of(prop::sample::select(vec![
            Verdict::Succeeded,
            Verdict::Failed,
            Verdict::Cancelled,
            Verdict::Planned,
        ])),
        prop::sample::select(vec![Availability::Unknown, Availability::Available, Availability::Unavailable]),
        any::<[bool; 2]>(),
        0..=u64::MAX / 2,
        prop_oneof![Just(0_u32), any::<u32>()],
    );
    let result = prop_oneof![Just(RequestResult::Done), any::<String>().prop_map(RequestResult::Refused)];
    let requests = vec((any::<String>(), result).prop_map(|(token, result)| RequestRecord { token, result }), 0..3);
    (clocks, words, requests).prop_flat_map(|(clocks, words, requests)| {
        vec((arb_phase(clocks.0), any::<[bool; 2]>()), 0..12).prop_map(move |mut phases| {
            let mut seen = BTreeSet::new();
            phases.retain(|((_, row), _)| seen.insert(row.id.clone()));
            let ids: Vec<PhaseId> = phases.iter().map(|((_, row), _)| row.id.clone()).collect();
            let before = |i: usize, [one, two]: [bool; 2]| {
                let backwards = [(one, 1), (two, 2)].into_iter().filter(|&(waits, back)| waits && back <= i);
                backwards.map(|(_, back)| ids[i - back].clone()).collect::<Vec<_>>()
            };
            let phases_of = phases.iter().enumerate();
            let planned: Vec<_> =
                phases_of.map(|(i, ((mode, row), waits))| (row.id.clone(), *mode, before(i, *waits))).collect();
            let record = Record {
                revision: words.4,
                strategy: words.0,
                started_at: clocks.0,
                finished_at: clocks.1,
                verdict: words.1,
                paused_since: clocks.2,
                paused_total: clocks.3,
                availability: words.2,
                heard: words.3[0],
                timed_out: words.3[1],
                runs_removed: words.5,
                phases: phases.into_iter().map(|((_, row), _)| row).collect(),
                requests: requests.clone(),
            };
            (plan(&planned), record)
        })
    })
}

proptest! {
    #[test]
    fn a_record_survives_the_serialized_status((plan, record) in arb_record()) {
        let status = project(&record, &plan, Frame::default(), ROOMY).expect("room for all");
        prop_assert_eq!(restore(&stored(&status), &plan).expect("our own status"), record);
    }

    #[test]
    fn a_record_too_large_for_its_rows_comes_back_collapsed((plan, record) in arb_record()) {
        let whole = project(&record, &plan, Frame::default(), ROOMY).expect("room for all");
        let room = serde_json::to_vec(&whole).expect("JSON").len();
        match project(&record, &plan, Frame::default(), room - 1) {
            Ok(status) => prop_assert_eq!(restore(&stored(&status), &plan).expect("our own status"), collapsed(&record, &plan)),
            Err(ProjectError::TooLarge { bytes, bytes_max, .. }) => prop_assert!(bytes > bytes_max && bytes_max < room),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn collapsing_keeps_state_reason_run_and_whatever_is_not_finished((plan, record) in arb_record()) {
        let left = collapsed(&record, &plan);
        for (before, after) in record.phases.iter().zip(&left.phases) {
            prop_assert_eq!((&before.id, before.state, before.reason, before.run), (&after.id, after.state, after.reason, after.run));
            prop_assert_eq!((before.ignored, before.used, &before.released), (after.ignored, after.used, &after.released));
            if !before.state.is_terminal() || before.state == PhaseState::Failed {
                prop_assert_eq!(before, after);
            }
        }
        prop_assert_eq!(collapsed(&left, &plan), left);
    }

    #[test]
    fn a_patch_leaves_nothing_of_the_status_before_it((plan, before) in arb_record(), (other, after) in arb_record()) {
        let bus = BusPosition { stream: "reports".to_owned(), created: Some(noon().into()), sequence: 7 };
        let holder = Some(Holder { process: "a".to_owned(), transitions: 3, answered: Some(noon().into()) });
        let full = Frame { bus: Some(bus), holder, session_id: "s".to_owned(), ..Frame::default() };
        let before = project(&before, &plan, full, ROOMY).expect("room for all");
        let bare = Frame { bus: Some(BusPosition::default()), ..Frame::default() };
        let after = project(&after, &other, bare, ROOMY).expect("room for all");
        let mut object = status_patch(&before);
        merge(&mut object, &status_patch(&after));
        prop_assert_eq!(serde_json::from_value::<PhaseManifestStatus>(object["status"].take()).expect("ours"), after);
    }

    #[test]
    fn no_status_whatever_panics_restore(text in "[A-Za-z.]{0,4}", number in any::<i64>(), (plan, record) in arb_record()) {
        let mut status = project(&record, &plan, Frame::default(), ROOMY).expect("room for all");
        status.outcomes = Some(text.clone());
        status.run = Some(number);
        status.phases.push(PhaseStatus { id: text.clone(), state: text, attempt: number, ..PhaseStatus::default() });
        drop(restore(&status, &plan));
    }
}

#[test]
fn a_revision_starts_without_rows() {
    let plan = numbered(1000);
    let status = project(&record(&plan, PhaseState::Waiting), &plan, Frame::default(), ROOMY).expect("fits");
    assert_eq!((status.phases.len(), status.outcomes), (0, None));
}

#[test]
fn a_restart_of_every_phase_still_collapses() {
    let plan = numbered(20_000);
    let mut all = record(&plan, PhaseState::Complete);
    for row in &mut all.phases {
        row.run = 7;
        row.message = "done and dusted".to_owned();
    }
    let status = project(&all, &plan, Frame::default(), STATUS_BYTES_MAX).expect("20,000 phases fit as letters");
    assert_eq!((status.phases.len(), status.run), (0, Some(7)));
    assert!(serde_json::to_vec(&status).expect("JSON").len() < 21_000);
    assert_eq!(restore(&stored(&status), &plan).expect("ours"), collapsed(&all, &plan));
}

#[test]
fn rows_stay_for_failed_and_held_phases_and_for_other_runs() {
    let plan = numbered(10_000);
    let mut all = record(&plan, PhaseState::Complete);
    all.phases[1].state = PhaseState::Failed;
    all.phases[2].state = PhaseState::Held;
    all.phases[3].run = 2;
    for row in &mut all.phases {
        row.message = "m".repeat(100);
    }
    let status = project(&all, &plan, Frame::default(), STATUS_BYTES_MAX).expect("fits");
    let ids: Vec<&str> = status.phases.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(ids, ["phase-1", "phase-2", "phase-3"]);
    assert_eq!(status.outcomes.as_deref().map(|letters| &letters[..6]), Some("C...CC"));
}

#[test]
fn what_does_not_fit_even_so_is_refused_with_the_numbers() {
    let plan = numbered(20_000);
    let failed = record(&plan, PhaseState::Failed);
    let error = project(&failed, &plan, Frame::default(), STATUS_BYTES_MAX).expect_err("20,000 rows");
    let ProjectError::TooLarge { phases, rows, bytes, bytes_max } = error;
    assert_eq!((phases, rows, bytes_max), (20_000, 20_000, STATUS_BYTES_MAX));
    assert!(bytes > bytes_max);
    assert_eq!(error.reason(), ConditionReason::TooLarge.as_str());
}

#[test]
fn a_large_spec_leaves_less_room_for_status() {
    let mut object = PhaseManifest::new("a", PhaseManifestSpec::default());
    assert_eq!(status_bytes_max(&object), STATUS_BYTES_MAX);
    object.spec.phases = Some(vec![json!("x".repeat(1_200_000))].into());
    let room = status_bytes_max(&object);
    assert!((200_000..270_000).contains(&room), "{room}");
    object.spec.phases = Some(vec![json!("x".repeat(2_000_000))].into());
    assert_eq!(status_bytes_max(&object), 0);
}

/// A session over `plan` that failed at its first phase: what waits for it is blocked, the rest is stopped.
fn failed_at_the_root(plan: &Arc<Plan>) -> Session {
    let mut session = Session::start("uid", Arc::clone(plan), 1, Strategy::Hybrid, Settings::default(), noon());
    let report = Report {
        phase: plan.phases()[0].id.clone(),
        status: ReportStatus::Failed,
        token: None,
        runtime: None,
        progress: None,
        message: None,
        retry: RetryAdvice::Never,
        heartbeat: None,
    };
    for input in [Input::Stored, Input::Report(report)] {
        while session.poll_output().is_some() {}
        session.handle(input, noon());
    }
    while session.poll_output().is_some() {}
    session
}

#[test]
fn a_session_whose_rows_became_letters_goes_on_as_if_they_had_not() {
    let id = |i: usize| PhaseId::new(&format!("phase-{i}")).expect("printable");
    let waits = |i: usize| if i > 0 && i.is_multiple_of(2) { vec![id(i - 2)] } else { Vec::new() };
    let phases: Vec<_> = (0..400).map(|i| (id(i), InstanceMode::Immediate, waits(i))).collect();
    let plan = Arc::new(plan(&phases));
    let whole = failed_at_the_root(&plan);
    assert_eq!((whole.counts().upstream_failed, whole.counts().cancelled), (199, 200));

    let status = project(&whole.record(), &plan, Frame::default(), 2_000).expect("one row and 399 letters");
    assert_eq!(status.phases.len(), 1);
    let record = restore(&stored(&status), &plan).expect("our own status");
    assert_eq!(record.phases[398].blocked_by, [id(0)]);
    let mut short = Session::restore("uid", Arc::clone(&plan), record.clone(), Settings::default(), noon());
    assert_eq!(short.record(), record);
    let transitions = std::iter::from_fn(|| short.poll_output()).filter(|out| matches!(out, Output::Transition(_)));
    assert_eq!(transitions.count(), 0);

    let again = Request { token: "t".to_owned(), action: RequestAction::Retry, phase: Some(id(0)) };
    short.handle(Input::Requests(vec![again]), noon());
    while short.poll_output().is_some() {}
    assert_eq!((short.counts().waiting, short.counts().upstream_failed, short.counts().cancelled), (400, 0, 0));
}

#[test]
fn restore_names_what_it_cannot_read() {
    let plan = numbered(2);
    let good = project(&record(&plan, PhaseState::Running), &plan, Frame::default(), ROOMY).expect("fits");
    let refusal = |change: &dyn Fn(&mut PhaseManifestStatus)| {
        let mut status = good.clone();
        change(&mut status);
        restore(&status, &plan).expect_err("not ours")
    };
    assert_eq!(restore(&PhaseManifestStatus::default(), &plan), Err(RestoreError::Missing("schema")));
    assert_eq!(refusal(&|status| status.schema = Some(2)), RestoreError::UnknownSchema(2));
    assert_eq!(refusal(&|status| status.started_at = None), RestoreError::Missing("startedAt"));
    assert_eq!(refusal(&|status| status.phases[0].id = "z".to_owned()), RestoreError::UnknownPhase("z".to_owned()));
    assert_eq!(
        refusal(&|status| status.phases[1].id = "phase-0".to_owned()),
        RestoreError::RepeatedPhase("phase-0".to_owned())
    );
    assert_eq!(
        refusal(&|status| status.outcomes = Some("C".to_owned())),
        RestoreError::OutcomesLength { letters: 1, phases: 2 }
    );
    assert!(matches!(
        refusal(&|status| status.phases[0].state = "Dancing".to_owned()),
        RestoreError::UnknownWord { .. }
    ));
    assert!(matches!(refusal(&|status| status.phases[0].attempt = -1), RestoreError::OutOfRange { .. }));
}

#[test]
fn counts_make_the_progress() {
    let counts = Counts { total: 9, wanted: 7, idle: 2, complete: 1, skipped: 1, ignored: 1, ..Counts::default() };
    let plan = numbered(1);
    let frame = Frame { counts, ..Frame::default() };
    let status = project(&record(&plan, PhaseState::Waiting), &plan, frame, ROOMY).expect("fits");
    assert_eq!(status.progress.as_deref(), Some("3/7"));
    assert_eq!(status.counts.map(|counts| counts.wanted), Some(7));
}

#[test]
fn times_are_stored_in_milliseconds_and_never_later_than_meant() {
    let at: Timestamp = "2026-01-02T12:00:00.9999Z".parse().expect("a time");
    assert_eq!(Moment::from(at).to_string(), "2026-01-02T12:00:00.999Z");
    let whole: Timestamp = "2026-01-02T12:00:00Z".parse().expect("a time");
    assert_eq!(Moment::from(whole).to_string(), "2026-01-02T12:00:00.000Z");
    assert_eq!(Span::from(Duration::from_secs(61)).to_string(), "61s");
    assert_eq!(Span::from(Duration::from_micros(1_500_900)).to_string(), "1500ms");
    assert!("5".parse::<Span>().is_err() && "-5s".parse::<Span>().is_err() && "s".parse::<Span>().is_err());
}

#[test]
fn a_status_of_another_operator_or_of_nobody_is_read() {
    for status in [json!({}), json!({"observedGeneration": -1}), json!({"fromTheFuture": {"a": 1}, "phases": [{}]})] {
        serde_json::from_value::<PhaseManifestStatus>(status).expect("every field has a default");
    }
}
