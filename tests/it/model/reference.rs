//! What must hold, written as a person would say it: no indices, no counters, no clocks, everything looked up anew.

use std::collections::{BTreeMap, BTreeSet};

use pmp::{
    engine::{
        AttemptToken, HandlerEffect, Output, Pace, PhaseReason, PhaseRecord, PhaseState, Record, Session, Settings,
        Target, Transition, Verdict,
    },
    manifest::{PhaseId, Plan},
};

/// Everything seen of one session from outside, over all its crashes.
#[derive(Default)]
pub struct Reference {
    /// What the first target of each token said.
    targets: BTreeMap<AttemptToken, (PhaseId, u32, String)>,
    /// (phase, run) whose handler effects were seen, by id; emptied by a crash, which may repeat them.
    handlers: BTreeSet<String>,
    /// (phase, run) that reached an end which nothing but another run may leave.
    finished: BTreeMap<(PhaseId, u32), PhaseState>,
    last: Option<Record>,
    stored_runs: BTreeMap<PhaseId, u32>,
}

impl Reference {
    /// One output, judged against the session just after it was made.
    pub fn judge(&mut self, output: &Output, session: &Session, settings: &Settings) {
        match output {
            Output::Target(target) => {
                assert_eq!(settings.pace, Pace::Going, "offered while suspended");
                self.judge_target(target, session);
            }
            Output::Handler(handler) => self.judge_handler(handler),
            Output::Verdict(verdict) => judge_verdict(*verdict, session),
            _ => {}
        }
    }

    fn judge_target(&mut self, target: &Target, session: &Session) {
        let plan = session.plan();
        let row = session.phase(target.phase);
        assert!(waits_are_satisfied(plan, &session.record(), &row.id), "{} offered before its waits", row.id);
        assert!(target.attempt <= plan.phase(target.phase).spec.max_attempts, "{} tried too often", row.id);
        assert_eq!(session.verdict(), None, "{} offered after the verdict", row.id);
        let seen = self.finished.get(&(row.id.clone(), row.run));
        assert_eq!(seen, None, "{} offered again within its run", row.id);
        assert_eq!(self.stored_runs.get(&row.id), Some(&row.run), "{} offered before its run was stored", row.id);
        let body = format!("{:?}", plan.phase(target.phase).spec.extensions);
        let said = (row.id.clone(), target.attempt, body);
        let first = self.targets.entry(target.token.clone()).or_insert_with(|| said.clone());
        assert_eq!(*first, said, "one token, two meanings");
    }

    fn judge_handler(&mut self, handler: &HandlerEffect) {
        // A hold and a later failure of the same run are two outcomes a person hears of; each once.
        assert!(self.handlers.insert(handler.id.clone()), "handler {} twice", handler.id);
    }

    /// After every step.
    pub fn judge_record(&mut self, session: &Session, settings: &Settings) {
        let record = session.record();
        for row in &record.phases {
            self.judge_row(row, session);
        }
        judge_counts(session, &record);
        judge_slots(&record, settings, self.last.as_ref());
        if session.verdict().is_none() {
            assert!(
                session.counts().wanted > session.counts().done() || session.counts().wanted == 0,
                "done without a verdict"
            );
        }
        self.last = Some(record);
    }

    fn judge_row(&mut self, row: &PhaseRecord, session: &Session) {
        let before = self.last.as_ref().and_then(|last| last.phases.iter().find(|old| old.id == row.id));
        if let Some(before) = before {
            assert!(row.run >= before.run, "{}: a run went backwards", row.id);
            if row.run == before.run {
                assert!(row.attempt >= before.attempt, "{}: an attempt went backwards", row.id);
                let revives = before.state.is_terminal() && !row.state.is_terminal();
                let untried = matches!(before.state, PhaseState::UpstreamFailed | PhaseState::Cancelled);
                assert!(
                    !revives || (untried && before.attempt == 0),
                    "{}: {} became {}",
                    row.id,
                    before.state,
                    row.state
                );
                let by_person = row.reason == Some(PhaseReason::Requested);
                let changed = before.state.is_terminal() && row.state.is_terminal() && before.state != row.state;
                assert!(!changed || by_person || untried, "{}: {} became {}", row.id, before.state, row.state);
            }
        }
        let is_final = matches!(row.state, PhaseState::Complete | PhaseState::Failed | PhaseState::Skipped);
        if is_final {
            self.finished.insert((row.id.clone(), row.run), row.state);
        }
        let spec = &session.plan().phase(session.plan().index_of(row.id.as_str()).unwrap()).spec;
        // An edit may lower the maximum below what was tried already.
        let is_more = before.is_none_or(|before| before.run != row.run || row.attempt > before.attempt);
        assert!(!is_more || row.attempt <= spec.max_attempts, "{}: attempt past its maximum", row.id);
        assert!(row.state != PhaseState::UpstreamFailed || !row.blocked_by.is_empty(), "{}: blocked by nobody", row.id);
    }

    /// What is in etcd now.
    pub fn stored(&mut self, record: &Record) {
        for row in &record.phases {
            self.stored_runs.insert(row.id.clone(), row.run);
        }
    }

    /// The process died: what it had in mind is as it was stored, and effects not known to be carried out are repeated.
    pub fn crashed(&mut self, record: &Record) {
        self.last = Some(record.clone());
        self.handlers.clear();
        self.finished = record
            .phases
            .iter()
            .filter(|row| matches!(row.state, PhaseState::Complete | PhaseState::Failed | PhaseState::Skipped))
            .map(|row| ((row.id.clone(), row.run), row.state))
            .collect();
    }
}

/// Nobody said so but a clock that ran out.
pub fn is_by_clock(transition: &Transition) -> bool {
    match transition.reason {
        Some(PhaseReason::Unanswered | PhaseReason::WaitTimeout | PhaseReason::HeartbeatLost) => true,
        Some(
            PhaseReason::StartTimeout
            | PhaseReason::AttemptTimeout
            | PhaseReason::TotalTimeout
            | PhaseReason::RevisionTimeout,
        ) => transition.to == PhaseState::Cancelling,
        _ => false,
    }
}

pub fn waits_are_satisfied(plan: &Plan, record: &Record, id: &PhaseId) -> bool {
    let phase = plan.phase(plan.index_of(id.as_str()).unwrap());
    phase.spec.wait_for.phases.iter().all(|on| {
        let row = record.phases.iter().find(|row| row.id == *on).unwrap();
        matches!(row.state, PhaseState::Complete | PhaseState::Skipped)
            || (row.state == PhaseState::Failed && row.ignored)
    })
}

/// The fold over wanted phases' own outcomes, from the sentence in the design.
fn judge_verdict(verdict: Verdict, session: &Session) {
    let record = session.record();
    let wanted = wanted(session.plan(), session.settings(), &record);
    let rows = || record.phases.iter().filter(|row| wanted.contains(&row.id));
    for row in rows() {
        assert!(row.state.is_terminal(), "verdict while {} is {}", row.id, row.state);
    }
    let by_person = |row: &PhaseRecord| {
        row.state == PhaseState::Cancelled && matches!(row.reason, Some(PhaseReason::Shutdown | PhaseReason::Drained))
    };
    let is_done = |row: &PhaseRecord| {
        matches!(row.state, PhaseState::Complete | PhaseState::Skipped)
            || (row.state == PhaseState::Failed && row.ignored)
    };
    let expected = if rows().any(by_person) {
        Verdict::Cancelled
    } else if rows().all(is_done) {
        Verdict::Succeeded
    } else {
        Verdict::Failed
    };
    assert_eq!(verdict, expected);
}

/// Target or immediate phases, what was asked for, and whatever those wait for: until nothing is added any more.
pub fn wanted(plan: &Plan, settings: &Settings, record: &Record) -> BTreeSet<PhaseId> {
    let target = settings.target_phase.as_ref().filter(|id| plan.index_of(id.as_str()).is_some());
    let mut wanted: BTreeSet<PhaseId> = plan
        .phases()
        .iter()
        .filter(|phase| match target {
            Some(id) => phase.id == *id,
            None => phase.spec.instance_mode == pmp::manifest::InstanceMode::Immediate,
        })
        .map(|phase| phase.id.clone())
        .chain(record.phases.iter().filter(|row| row.used).map(|row| row.id.clone()))
        .collect();
    loop {
        let more: BTreeSet<PhaseId> = plan
            .phases()
            .iter()
            .filter(|phase| wanted.contains(&phase.id))
            .flat_map(|phase| phase.spec.wait_for.phases.iter().cloned())
            .filter(|id| !wanted.contains(id))
            .collect();
        if more.is_empty() {
            return wanted;
        }
        wanted.extend(more);
    }
}

fn judge_counts(session: &Session, record: &Record) {
    let wanted = wanted(session.plan(), session.settings(), record);
    let counts = session.counts();
    let count = |state: PhaseState, ignored: bool| {
        let is = |row: &&PhaseRecord| wanted.contains(&row.id) && row.state == state && row.ignored == ignored;
        u32::try_from(record.phases.iter().filter(is).count()).unwrap()
    };
    assert_eq!(counts.wanted as usize, wanted.len());
    assert_eq!(counts.total as usize, record.phases.len());
    assert_eq!(counts.idle, counts.total - counts.wanted);
    for (is, state) in [
        (counts.waiting, PhaseState::Waiting),
        (counts.offered, PhaseState::Offered),
        (counts.queued, PhaseState::Queued),
        (counts.running, PhaseState::Running),
        (counts.backing_off, PhaseState::BackingOff),
        (counts.held, PhaseState::Held),
        (counts.cancelling, PhaseState::Cancelling),
        (counts.complete, PhaseState::Complete),
        (counts.failed, PhaseState::Failed),
        (counts.upstream_failed, PhaseState::UpstreamFailed),
        (counts.skipped, PhaseState::Skipped),
        (counts.cancelled, PhaseState::Cancelled),
    ] {
        assert_eq!(is, count(state, false), "count of {state}");
    }
    assert_eq!(counts.ignored, count(PhaseState::Failed, true));
}

/// Offers and grants never go past the slots. (A lowered bound, and attempts that a crash forgot or peers take unasked,
/// can leave more in flight; nothing is added to them.)
fn judge_slots(record: &Record, settings: &Settings, last: Option<&Record>) {
    let Some(slots) = settings.parallelism else { return };
    let offered = |record: &Record| record.phases.iter().filter(|row| row.state == PhaseState::Offered).count();
    let in_flight = record.phases.iter().filter(|row| row.state.is_in_flight()).count();
    let is_more = last.is_some_and(|last| offered(record) > offered(last));
    assert!(!is_more || in_flight <= slots.get() as usize, "{in_flight} in flight with {slots} slots");
}
