//! The pure core alone: a text becomes a plan, and a session walks it, without bus, store or clock.

use std::{fs, sync::Arc, time::Duration};

use jiff::Timestamp;
use pmp::{
    engine::{
        Ack, Answer, AskId, Input, OffersGate, Output, Report, ReportStatus, RetryAdvice, Session, Settings, Strategy,
        Target, Verdict,
    },
    manifest::{Format, OtherKinds, Plan, parse},
};
use serde::Serialize;

use crate::{
    load::{Shape, full_text},
    stats::{Spread, millis},
};

/// Phases a layer: wide enough that the set of ready ones is never small.
const WIDTH: usize = 100;

/// Phases that are read and walked for one figure, at least.
const BATCH_PHASES: usize = 100_000;

/// What one size took, in milliseconds of one processor.
#[derive(Serialize)]
pub struct CoreRow {
    pub phases: usize,
    pub text_bytes: usize,
    /// Read, forgiven, checked, ordered and digested.
    pub parse_ms: Spread,
    /// From the start to the verdict: per phase a target, an ask, a grant, a `running` and a `complete`.
    pub walk_ms: Spread,
    pub total_ms: Spread,
}

/// Measures one size so many times.
pub fn measure(phases: usize, runs: usize) -> CoreRow {
    let text = full_text(&Shape::Layers { count: phases.div_ceil(WIDTH), width: WIDTH.min(phases) }.steps(7));
    let (mut parses, mut walks, mut totals) = (Vec::new(), Vec::new(), Vec::new());
    // The system counts CPU in steps of some milliseconds: what takes less is done many times.
    let times = (BATCH_PHASES / phases).max(1);
    for _ in 0..runs {
        let (mut reading, mut walking) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..times {
            let began = own_cpu();
            let plan = parse(text.as_bytes(), Format::Json, OtherKinds::Refuse).expect("the text is a manifest").plan;
            reading += own_cpu().saturating_sub(began);
            walking += walk(Arc::new(plan));
        }
        let each = |sum: Duration| millis(sum) / f64::from(u32::try_from(times).unwrap_or(u32::MAX));
        parses.push(each(reading));
        walks.push(each(walking));
        totals.push(each(reading + walking));
    }
    CoreRow {
        phases,
        text_bytes: text.len(),
        parse_ms: Spread::of(&parses),
        walk_ms: Spread::of(&walks),
        total_ms: Spread::of(&totals),
    }
}

/// Runs a session to its verdict with a runtime that does everything at once.
fn walk(plan: Arc<Plan>) -> Duration {
    let now = Timestamp::UNIX_EPOCH;
    let began = own_cpu();
    let mut session = Session::start("uid", plan, 1, Strategy::Hybrid, Settings::default(), now);
    let mut targets = Vec::new();
    let mut verdict = drained(&mut session, &mut targets);
    for input in [Input::Stored, Input::Offers(OffersGate::Open)] {
        session.handle(input, now);
        verdict = verdict.or(drained(&mut session, &mut targets));
    }
    let mut next = 0;
    while let Some(target) = targets.get(next).cloned() {
        let ask = AskId(next as u64);
        next += 1;
        for input in answers(&session, &target, ask) {
            session.handle(input, now);
            verdict = verdict.or(drained(&mut session, &mut targets));
        }
    }
    assert_eq!(verdict, Some(Verdict::Succeeded), "every phase was done");
    own_cpu().saturating_sub(began)
}

/// CPU that this thread has used: what it takes on a machine that is its own, whatever others do meanwhile.
fn own_cpu() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("this is Linux");
    let nanos = text.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.expect("the first field is nanoseconds on a processor"))
}

fn answers(session: &Session, target: &Target, ask: AskId) -> [Input; 3] {
    let phase = session.plan().id(target.phase).clone();
    let (token, runtime) = (Some(target.token.clone()), Some("bench".to_owned()));
    let report = |status| Report {
        phase: phase.clone(),
        status,
        token: token.clone(),
        runtime: runtime.clone(),
        progress: None,
        message: None,
        retry: RetryAdvice::AsConfigured,
        heartbeat: None,
    };
    let ack = Ack {
        phase: phase.clone(),
        answer: Answer::Accepted,
        token: token.clone(),
        runtime: runtime.clone(),
        heartbeat: None,
        reason: None,
        ask: Some(ask),
    };
    [Input::Ack(ack), Input::Report(report(ReportStatus::Running)), Input::Report(report(ReportStatus::Complete))]
}

fn drained(session: &mut Session, targets: &mut Vec<Target>) -> Option<Verdict> {
    let mut verdict = None;
    while let Some(output) = session.poll_output() {
        match output {
            Output::Target(target) => targets.push(target),
            Output::Verdict(fell) => verdict = Some(fell),
            _ => {}
        }
    }
    verdict
}
