//! A session, two runtimes that keep the protocol, one early peer that knows no tokens, a store, and a network that
//! drops, repeats and reorders. One seed is one schedule.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use pmp::{
    engine::{
        Ack, Answer, AskId, AttemptToken, Control, Edit, Grant, Input, Keep, OffersGate, Output, Pace, PhaseState,
        Record, Report, ReportStatus, Request, RequestAction, RetryAdvice, Session, Settings, Strategy,
    },
    manifest::{PhaseId, Plan},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{
    plans,
    reference::{Reference, is_by_clock},
};

const UID: &str = "0b8f3f0e-uid";
const HEARTBEAT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Faults {
    None,
    All,
    /// Until [`World::heal_and_finish`].
    UntilHealed,
}

pub struct World {
    rng: SmallRng,
    faults: Faults,
    pub now: Timestamp,
    pub session: Session,
    plans: BTreeMap<u64, (Arc<Plan>, Keep, Strategy)>,
    settings: Settings,
    requests: Vec<Request>,
    next_request: u32,
    /// What etcd holds; nothing before the first write.
    stored: Option<Record>,
    store_asked: bool,
    gate: OffersGate,
    runtimes: [Runtime; 2],
    wires: Vec<Wire>,
    next_ask: u64,
    /// Tokens that some runtime began to execute.
    executed: BTreeSet<AttemptToken>,
    /// Tokens that were granted to somebody, heard or not.
    granted: BTreeSet<AttemptToken>,
    asks: BTreeMap<AskId, AttemptToken>,
    beats: bool,
    /// After a resync nothing is offered or granted until then.
    silent_until: Timestamp,
    reference: Reference,
    trace: Vec<String>,
}

struct Runtime {
    /// Of this process: one that comes back is another runtime.
    name: String,
    held: BTreeMap<AttemptToken, Held>,
}

#[derive(Debug, Clone)]
struct Held {
    phase: PhaseId,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Asked(AskId),
    Running,
    Done(ReportStatus),
}

#[derive(Debug, Clone)]
enum Wire {
    ToSession(Input),
    Target { to: usize, phase: PhaseId, token: AttemptToken },
    Control { to: usize, control: Control },
}

impl World {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let plan = Arc::new(plans::plan(&mut rng));
        let settings = plans::settings(&mut rng);
        let strategy = plans::strategy(&mut rng);
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let session = Session::start(UID, Arc::clone(&plan), 1, strategy, settings.clone(), now);
        let mut world = Self {
            rng,
            faults,
            now,
            session,
            plans: BTreeMap::from([(1, (plan, Keep::Unchanged, strategy))]),
            settings,
            requests: Vec::new(),
            next_request: 0,
            stored: None,
            store_asked: false,
            gate: OffersGate::Deaf,
            runtimes: ["r1", "r2"].map(|name| Runtime { name: name.to_owned(), held: BTreeMap::new() }),
            wires: Vec::new(),
            next_ask: 0,
            executed: BTreeSet::new(),
            granted: BTreeSet::new(),
            asks: BTreeMap::new(),
            beats: true,
            silent_until: now,
            reference: Reference::default(),
            trace: Vec::new(),
        };
        world.drain();
        world.open_gate();
        world
    }

    pub fn into_trace(mut self) -> Vec<String> {
        std::mem::take(&mut self.trace)
    }

    /// One thing happens.
    pub fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..=39 => self.deliver_some(),
            40..=57 => self.work(),
            58..=65 => self.pass_time(),
            66..=75 => self.store(),
            76..=78 => self.crash(),
            79..=82 => self.nudge(),
            83..=85 => self.edit(),
            86..=88 => self.ask_for_something(),
            89..=90 => self.blink(),
            91..=93 => self.early_peer(),
            94..=95 => self.garbage(),
            _ => self.lose_a_runtime(),
        }
        self.reference.judge_record(&self.session, &self.settings);
    }

    // === the session ===

    fn handle(&mut self, input: Input) {
        self.trace.push(match &input {
            Input::Edit(edit) => format!("{} Edit {} {:?}", self.now, edit.revision, edit.keep),
            input => format!("{} {input:?}", self.now),
        });
        let is_tick = matches!(input, Input::Tick);
        self.session.handle(input, self.now);
        let said = self.trace.len();
        self.drain();
        let is_still = self.trace.len() == said;
        assert!(is_still || !is_tick || self.can_judge(), "time alone said something while nobody could be heard");
    }

    fn drain(&mut self) {
        let mut report_asked = false;
        while let Some(output) = self.session.poll_output() {
            self.trace.push(format!("  {output:?}"));
            self.reference.judge(&output, &self.session, &self.settings);
            match output {
                Output::Store => self.store_asked = true,
                Output::Target(target) => {
                    assert!(self.now >= self.silent_until, "offered in the silence after a resync");
                    let phase = self.session.phase(target.phase).id.clone();
                    for to in 0..2 {
                        self.wires.push(Wire::Target { to, phase: phase.clone(), token: target.token.clone() });
                    }
                }
                Output::Control(Control::Report { attempt: None }) => report_asked = true,
                Output::Control(control) => {
                    for to in 0..2 {
                        self.wires.push(Wire::Control { to, control: control.clone() });
                    }
                }
                Output::Answer { ask, grant } => self.answered(ask, grant),
                Output::Transition(transition) => {
                    assert!(self.can_judge() || !is_by_clock(&transition), "judged by a clock: {transition:?}");
                }
                _ => {}
            }
        }
        if report_asked {
            self.answer_report();
        }
    }

    fn store(&mut self) {
        let record = self.session.record();
        self.reference.stored(&record);
        self.stored = Some(record);
        if std::mem::take(&mut self.store_asked) {
            self.handle(Input::Stored);
        }
    }

    fn crash(&mut self) {
        self.trace.push("crash".to_owned());
        // Grants on their way to a runtime die with the connection.
        self.give_up_asking();
        self.store_asked = false;
        self.silent_until = self.now;
        let (plan, settings, now) = (|revision| self.plans[&revision].0.clone(), self.settings.clone(), self.now);
        self.session = match self.stored.clone() {
            Some(stored) => Session::restore(UID, plan(stored.revision), stored, settings, now),
            None => Session::start(UID, plan(1), 1, self.plans[&1].2, settings, now),
        };
        self.reference.crashed(&self.session.record());
        self.gate = OffersGate::Deaf;
        self.drain();
        let (&revision, (plan, keep, strategy)) = self.plans.last_key_value().unwrap();
        if revision > self.session.revision() {
            let edit = Edit { plan: Arc::clone(plan), revision, strategy: *strategy, keep: *keep };
            self.handle(Input::Edit(edit));
        }
        self.handle(Input::Requests(self.requests.clone()));
        self.handle(Input::Resync);
        self.open_gate();
    }

    fn open_gate(&mut self) {
        self.gate = OffersGate::Open;
        self.handle(Input::Offers(OffersGate::Open));
    }

    /// The connection or the store goes, or comes back.
    fn blink(&mut self) {
        match self.gate {
            OffersGate::Open => {
                self.gate = if self.rng.random_bool(0.5) { OffersGate::Deaf } else { OffersGate::Closed };
                self.handle(Input::Offers(self.gate));
            }
            OffersGate::Closed => self.open_gate(),
            OffersGate::Deaf => {
                self.handle(Input::Resync);
                self.open_gate();
            }
        }
    }

    /// What is said reaches the session, and whoever was asked has had the time to answer.
    fn can_judge(&self) -> bool {
        self.gate != OffersGate::Deaf && self.now >= self.silent_until
    }

    // === people ===

    fn nudge(&mut self) {
        self.settings = plans::nudged(&mut self.rng, &self.settings, &self.session.plan().clone());
        self.handle(Input::Settings(Box::new(self.settings.clone())));
    }

    fn edit(&mut self) {
        let (&last, (plan, ..)) = self.plans.last_key_value().unwrap();
        let plan = Arc::new(plans::edited(&mut self.rng, plan));
        let keep = if self.rng.random_bool(0.8) { Keep::Unchanged } else { Keep::Nothing };
        let strategy = self.plans[&last].2;
        self.plans.insert(last + 1, (Arc::clone(&plan), keep, strategy));
        self.handle(Input::Edit(Edit { plan, revision: last + 1, strategy, keep }));
    }

    fn ask_for_something(&mut self) {
        let plan = Arc::clone(self.session.plan());
        if self.requests.len() > 2 {
            self.requests.remove(0);
        }
        let action = match self.rng.random_range(0..6) {
            0..=1 => RequestAction::Retry,
            2 => RequestAction::Skip,
            3 => RequestAction::Use,
            4 => RequestAction::Complete,
            _ => RequestAction::Restart,
        };
        let phase = (!plan.is_empty()).then(|| plan.phases()[self.rng.random_range(0..plan.len())].id.clone());
        let token = format!("request-{}", self.next_request);
        self.next_request += 1;
        self.requests.push(Request { token, action, phase });
        self.handle(Input::Requests(self.requests.clone()));
    }

    // === the network ===

    fn deliver_some(&mut self) {
        if self.wires.is_empty() {
            return self.work();
        }
        let at = self.rng.random_range(0..self.wires.len());
        let fate = if self.faults == Faults::None { 9 } else { self.rng.random_range(0..10) };
        match fate {
            0 => {
                self.wires.swap_remove(at);
            }
            1 => self.deliver(self.wires[at].clone()),
            _ => {
                let wire = self.wires.swap_remove(at);
                self.deliver(wire);
            }
        }
    }

    fn deliver(&mut self, wire: Wire) {
        match wire {
            Wire::ToSession(input) => self.handle(input),
            Wire::Target { to, phase, token } => self.offered(to, phase, token),
            Wire::Control { to, control } => self.controlled(to, &control),
        }
    }

    fn pass_time(&mut self) {
        let next = self.session.poll_timeout();
        let by = match next {
            Some(due) if self.rng.random_bool(0.7) => due.duration_since(self.now).max(SignedDuration::ZERO),
            _ => SignedDuration::from_millis(self.rng.random_range(1..4000)),
        };
        self.now += by;
        if self.rng.random_bool(0.5) {
            self.give_up_asking();
        }
        self.beat();
        self.handle(Input::Tick);
    }

    // === runtimes ===

    /// Requests time out; whoever hears of the token again asks again.
    fn give_up_asking(&mut self) {
        for runtime in &mut self.runtimes {
            runtime.held.retain(|_, held| !matches!(held.stage, Stage::Asked(_)));
        }
    }

    /// Alive runtimes say so in time, or the test would be one of heartbeats alone.
    fn beat(&mut self) {
        if !self.beats || self.rng.random_bool(0.3) {
            return;
        }
        for to in 0..2 {
            for (token, held) in self.runtimes[to].held.clone() {
                if held.stage == Stage::Running {
                    let report = self.report_of(to, &token, &held.phase, ReportStatus::Running);
                    self.handle(Input::Report(report));
                }
            }
        }
    }

    fn report_of(&self, to: usize, token: &AttemptToken, phase: &PhaseId, status: ReportStatus) -> Report {
        Report {
            phase: phase.clone(),
            status,
            token: Some(token.clone()),
            runtime: Some(self.runtimes[to].name.clone()),
            progress: None,
            message: None,
            retry: RetryAdvice::AsConfigured,
            heartbeat: self.beats.then_some(HEARTBEAT),
        }
    }

    /// A runtime that is offered a token it holds answers with what it knows; else it asks, declines or is silent.
    fn offered(&mut self, to: usize, phase: PhaseId, token: AttemptToken) {
        if let Some(held) = self.runtimes[to].held.get(&token) {
            let stage = held.stage;
            return self.say_again(to, &token, &phase, stage);
        }
        let decline = self.faults != Faults::None && self.rng.random_bool(0.15);
        let ask = AskId(self.next_ask);
        self.next_ask += 1;
        self.asks.insert(ask, token.clone());
        if !decline {
            self.runtimes[to].held.insert(token.clone(), Held { phase: phase.clone(), stage: Stage::Asked(ask) });
        }
        let answer = if decline { Answer::Declined } else { Answer::Accepted };
        let ack = Ack {
            phase,
            answer,
            token: Some(token),
            runtime: Some(self.runtimes[to].name.clone()),
            heartbeat: self.beats.then_some(HEARTBEAT),
            reason: None,
            ask: (!decline).then_some(ask),
        };
        self.wires.push(Wire::ToSession(Input::Ack(ack)));
    }

    fn say_again(&mut self, to: usize, token: &AttemptToken, phase: &PhaseId, stage: Stage) {
        let status = match stage {
            Stage::Asked(_) => return,
            Stage::Running => ReportStatus::Running,
            Stage::Done(status) => status,
        };
        let report = self.report_of(to, token, phase, status);
        self.wires.push(Wire::ToSession(Input::Report(report)));
    }

    fn answered(&mut self, ask: AskId, grant: Grant) {
        if grant == Grant::Granted && self.granted.insert(self.asks[&ask].clone()) {
            assert!(self.now >= self.silent_until, "granted in the silence after a resync");
        }
        for runtime in &mut self.runtimes {
            let Some(token) =
                runtime.held.iter().find(|(_, held)| held.stage == Stage::Asked(ask)).map(|(token, _)| token.clone())
            else {
                continue;
            };
            match grant {
                Grant::Granted => {
                    runtime.held.get_mut(&token).unwrap().stage = Stage::Running;
                    assert!(self.executed.insert(token.clone()), "token {token} executed twice");
                }
                Grant::Refused => {
                    runtime.held.remove(&token);
                }
            }
        }
    }

    /// Everyone says what it holds, at once: a connected bus delivers within the silence that follows.
    fn answer_report(&mut self) {
        self.silent_until = self.now + SignedDuration::from_secs(5);
        for to in 0..2 {
            for (token, held) in self.runtimes[to].held.clone() {
                let status = match held.stage {
                    Stage::Asked(_) => continue,
                    Stage::Running => ReportStatus::Running,
                    Stage::Done(status) => status,
                };
                let report = self.report_of(to, &token, &held.phase, status);
                self.handle(Input::Report(report));
            }
        }
    }

    fn controlled(&mut self, to: usize, control: &Control) {
        let stopped: Vec<AttemptToken> = match control {
            Control::CancelSession => self.runtimes[to].held.keys().cloned().collect(),
            Control::Cancel { token, runtime, .. } => {
                let is_meant = runtime.as_deref().is_none_or(|name| name == self.runtimes[to].name);
                is_meant.then(|| token.clone()).into_iter().collect()
            }
            Control::Report { attempt: Some((phase, token)) } => {
                if let Some(held) = self.runtimes[to].held.get(token) {
                    let stage = held.stage;
                    self.say_again(to, token, phase, stage);
                }
                return;
            }
            _ => return,
        };
        for token in stopped {
            let Some(held) = self.runtimes[to].held.get_mut(&token) else { continue };
            if held.stage == Stage::Running && self.rng.random_bool(0.7) {
                held.stage = Stage::Done(ReportStatus::Failed);
                let phase = held.phase.clone();
                self.say_again(to, &token, &phase, Stage::Done(ReportStatus::Failed));
            }
        }
    }

    /// Some runtime gets on with something.
    fn work(&mut self) {
        let to = self.rng.random_range(0..2);
        let running: Vec<AttemptToken> = self.runtimes[to]
            .held
            .iter()
            .filter(|(_, held)| held.stage == Stage::Running)
            .map(|(token, _)| token.clone())
            .collect();
        if running.is_empty() {
            return;
        }
        let token = running[self.rng.random_range(0..running.len())].clone();
        let status = match self.rng.random_range(0..10) {
            0..=2 => ReportStatus::Running,
            3..=7 => ReportStatus::Complete,
            _ => ReportStatus::Failed,
        };
        self.report(to, &token, status);
    }

    fn report(&mut self, to: usize, token: &AttemptToken, status: ReportStatus) {
        let held = self.runtimes[to].held.get_mut(token).unwrap();
        let phase = held.phase.clone();
        if status != ReportStatus::Running {
            held.stage = Stage::Done(status);
        }
        let mut report = self.report_of(to, token, &phase, status);
        if status == ReportStatus::Failed && self.rng.random_bool(0.2) {
            report.retry = RetryAdvice::Never;
        }
        self.wires.push(Wire::ToSession(Input::Report(report)));
    }

    /// Dies and comes back with nothing in mind; only where heartbeats will tell.
    fn lose_a_runtime(&mut self) {
        if self.beats && self.faults != Faults::None {
            let to = self.rng.random_range(0..2);
            // Its work dies with it, so another may do it over.
            for token in std::mem::take(&mut self.runtimes[to].held).into_keys() {
                self.executed.remove(&token);
            }
            self.runtimes[to].name.push('\'');
        }
    }

    /// A peer that knows PMP 1.0.0 only: no acks, no tokens, the phases in array order.
    fn early_peer(&mut self) {
        let plan = Arc::clone(self.session.plan());
        if plan.is_empty() {
            return;
        }
        let phase = plan.phases()[self.rng.random_range(0..plan.len())].id.clone();
        let status = match self.rng.random_range(0..3) {
            0 => ReportStatus::Running,
            1 => ReportStatus::Complete,
            _ => ReportStatus::Failed,
        };
        let report = Report {
            phase,
            status,
            token: None,
            runtime: None,
            progress: None,
            message: None,
            retry: RetryAdvice::AsConfigured,
            heartbeat: None,
        };
        self.handle(Input::Report(report));
    }

    /// What must change no phase: tokens that nobody was given, attempts that are over, and somebody else's word.
    fn garbage(&mut self) {
        let (phase, token, runtime) = self.nonsense();
        let before = self.session.record().phases;
        if self.rng.random_bool(0.5) {
            let ack = Ack {
                phase,
                answer: Answer::Accepted,
                token: Some(token),
                runtime: Some(runtime),
                heartbeat: None,
                reason: None,
                ask: None,
            };
            self.handle(Input::Ack(ack));
        } else {
            let status = if self.rng.random_bool(0.5) { ReportStatus::Complete } else { ReportStatus::Failed };
            let mut report = self.report_of(0, &token, &phase, status);
            report.runtime = Some(runtime);
            self.handle(Input::Report(report));
        }
        assert_eq!(self.session.record().phases, before, "nonsense was believed");
    }

    fn nonsense(&mut self) -> (PhaseId, AttemptToken, String) {
        let rows = self.session.record().phases;
        let stranger = "stranger".to_owned();
        if rows.is_empty() || self.rng.random_bool(0.2) {
            let id = if self.rng.random_bool(0.5) { "a" } else { "nobody" };
            return (PhaseId::new(id).unwrap(), AttemptToken::received("made up"), stranger);
        }
        let row = &rows[self.rng.random_range(0..rows.len())];
        let holder = row.runtime.clone().unwrap_or_else(|| stranger.clone());
        match self.rng.random_range(0..3) {
            0 if row.state.is_bound() && row.runtime.is_some() => {
                (row.id.clone(), AttemptToken::new(UID, &row.id, row.run, row.attempt), stranger)
            }
            1 if row.attempt > 1 => (row.id.clone(), AttemptToken::new(UID, &row.id, row.run, row.attempt - 1), holder),
            _ => (row.id.clone(), AttemptToken::new(UID, &row.id, row.run - 1, 1), holder),
        }
    }

    // === liveness ===

    /// Everything is repaired, nobody edits any more; runtimes answer in the end. Then there is a verdict.
    pub fn heal_and_finish(&mut self) {
        self.faults = Faults::None;
        self.settings.pace = Pace::Going;
        self.settings.shutdown = None;
        self.handle(Input::Settings(Box::new(self.settings.clone())));
        if self.gate != OffersGate::Open {
            self.blink();
        }
        for _ in 0..5000 {
            if self.session.verdict().is_some() && self.wires.is_empty() {
                return;
            }
            self.store();
            self.heal_step();
            self.reference.judge_record(&self.session, &self.settings);
        }
        panic!("no verdict: {:#?}", self.session.record());
    }

    fn heal_step(&mut self) {
        if !self.wires.is_empty() {
            return self.deliver_some();
        }
        let held: Vec<(usize, AttemptToken)> = (0..2)
            .flat_map(|to| {
                let running = self.runtimes[to].held.iter().filter(|(_, held)| held.stage == Stage::Running);
                running.map(move |(token, _)| (to, token.clone())).collect::<Vec<_>>()
            })
            .collect();
        if let Some((to, token)) = held.first() {
            let status = if self.rng.random_bool(0.8) { ReportStatus::Complete } else { ReportStatus::Failed };
            return self.report(*to, token, status);
        }
        // What the early peer took, it ends; what is held, a person decides.
        let record = self.session.record();
        if let Some(row) = record.phases.iter().find(|row| row.state.is_bound() && row.tokenless) {
            let mut report = self.report_of(0, &AttemptToken::received(""), &row.id, ReportStatus::Complete);
            (report.token, report.runtime, report.heartbeat) = (None, row.runtime.clone(), None);
            return self.handle(Input::Report(report));
        }
        if let Some(row) = record.phases.iter().find(|row| row.state == PhaseState::Held) {
            let token = format!("request-{}", self.next_request);
            self.next_request += 1;
            self.requests = vec![Request { token, action: RequestAction::Complete, phase: Some(row.id.clone()) }];
            return self.handle(Input::Requests(self.requests.clone()));
        }
        let due = self.session.poll_timeout().unwrap_or_else(|| panic!("nothing to wait for: {record:#?}"));
        self.now = self.now.max(due);
        self.give_up_asking();
        self.handle(Input::Tick);
    }

    // === the law of restore ===

    /// `restore(record(s))` has the same record, and the same answers to what comes next.
    pub fn compare_with_restored(&mut self) {
        self.beats = false;
        self.settings.timeouts.heartbeat = None;
        self.handle(Input::Settings(Box::new(self.settings.clone())));
        if self.gate != OffersGate::Open {
            self.blink();
        }
        self.store();
        self.now += SignedDuration::from_secs(6);
        self.handle(Input::Tick);
        self.store();
        self.handle(Input::Tick);
        let record = self.session.record();
        // An announced heartbeat is judged from when it was last heard, which a restart forgets on purpose.
        if record.phases.iter().any(|row| row.heartbeat.is_some()) {
            return;
        }
        let plan = Arc::clone(self.session.plan());
        // Restored a while ago, so that the silence after a restore is over.
        let before = self.now - SignedDuration::from_secs(6);
        let mut twin = Session::restore(UID, plan, record.clone(), self.settings.clone(), before);
        assert_eq!(twin.record(), record);
        let told = said(&mut twin, self.now);
        assert!(told.is_empty(), "a restore says {told:?}");
        twin.handle(Input::Offers(OffersGate::Open), self.now);
        assert_eq!(said(&mut twin, self.now), Vec::new(), "a restore of {record:#?}");
        for _ in 0..6 {
            let input = self.next_input();
            self.session.handle(input.clone(), self.now);
            twin.handle(input.clone(), self.now);
            assert_eq!(said(&mut self.session, self.now), said(&mut twin, self.now), "after {input:?}");
            assert_eq!(self.session.record(), twin.record(), "after {input:?}");
        }
    }

    fn next_input(&mut self) -> Input {
        let rows = self.session.record().phases;
        let is_told = self.rng.random_bool(0.6) && !rows.is_empty();
        if !is_told {
            let due = self.session.poll_timeout().unwrap_or(self.now);
            self.now = self.now.max(due);
            return Input::Tick;
        }
        let row = &rows[self.rng.random_range(0..rows.len())];
        let token = AttemptToken::new(UID, &row.id, row.run, row.attempt.max(1));
        let status = match self.rng.random_range(0..3) {
            0 => ReportStatus::Running,
            1 => ReportStatus::Complete,
            _ => ReportStatus::Failed,
        };
        let mut report = self.report_of(0, &token, &row.id, status);
        report.runtime.clone_from(&row.runtime);
        Input::Report(report)
    }
}

/// A replayed seed tells how it came to fail.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("PMP_MODEL_SEED").is_some() {
            let from = self.trace.len().saturating_sub(60);
            eprintln!("{:#?}\n{}", self.session.plan().phases(), self.trace[from..].join("\n"));
        }
    }
}

/// Everything a session has to say, but for `.start`, whose pace begins anew, and `Stored`, which its peer has heard.
fn said(session: &mut Session, now: Timestamp) -> Vec<Output> {
    let mut said = Vec::new();
    while let Some(output) = session.poll_output() {
        if !matches!(output, Output::Start | Output::Store) {
            said.push(output);
        }
    }
    session.handle(Input::Stored, now);
    while let Some(output) = session.poll_output() {
        if !matches!(output, Output::Start | Output::Store) {
            said.push(output);
        }
    }
    said
}
