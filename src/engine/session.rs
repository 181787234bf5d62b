//! The session: its state, the way in and out, and the one place where a phase changes its state.
//!
//! What an input means is decided beside this file: acks and reports in [`super::reports`], ends and verdicts in
//! [`super::outcome`], settings, clocks and requests in [`super::steering`], new revisions in [`super::edit`].

use std::{
    cmp::Reverse,
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

use super::{
    AttemptToken, Availability, Counts, Input, MESSAGE_BYTES_MAX, OffersGate, Output, Pace, PhaseReason, PhaseRecord,
    PhaseState, Record, RequestRecord, Settings, Strategy, Transition, Verdict, graph,
    timing::{Dice, after, effective_backoff},
};
use crate::manifest::{PhaseId, PhaseIx, Plan};

/// One resource's run on the bus. See the module for the contract.
#[derive(Debug)]
pub struct Session {
    pub(super) uid: String,
    pub(super) plan: Arc<Plan>,
    pub(super) settings: Settings,
    pub(super) revision: u64,
    pub(super) strategy: Strategy,
    pub(super) rows: Vec<Row>,
    pub(super) counts: Counts,
    pub(super) in_flight: u32,
    /// Wanted phases that are not terminal: no verdict while there are any.
    pub(super) open: u32,
    pub(super) ready: BTreeSet<ReadyKey>,
    /// Wanted, open and never taken in this run: what a raise stops.
    pub(super) unstarted: BTreeSet<PhaseIx>,
    timers: BTreeSet<(Timestamp, PhaseIx)>,
    outputs: VecDeque<Output>,
    pub(super) started_at: Timestamp,
    pub(super) finished_at: Option<Timestamp>,
    pub(super) verdict: Option<Verdict>,
    pub(super) paused_since: Option<Timestamp>,
    pub(super) paused_total: Duration,
    pub(super) heard: bool,
    pub(super) timed_out: bool,
    pub(super) runs_removed: u32,
    pub(super) requests: Vec<RequestRecord>,
    pub(super) gate: OffersGate,
    /// A run was raised, or a revision begun, that is not stored yet: nothing is offered.
    pub(super) unstored: bool,
    /// After a resync: nothing is offered, granted or judged by a clock before then.
    pub(super) listening_until: Option<Timestamp>,
    /// When `.start` is due, while nobody was heard in this revision; then, where nothing is offered, a question.
    pub(super) start_due: Option<Timestamp>,
    /// How often that was said since the last time that it had an effect.
    pub(super) starts: u32,
    version: u64,
}

/// A phase's record and what follows from it.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) record: PhaseRecord,
    pub(super) wanted: bool,
    /// Waits not satisfied, here and in other manifests.
    pub(super) unmet: u32,
    pub(super) depth: u32,
    /// Last sign of life of the open attempt; a restored one is given a full heartbeat.
    pub(super) heard_at: Timestamp,
    /// Silence was answered with `x-report` already.
    pub(super) asked: bool,
    timer: Option<Timestamp>,
    /// Where it stands in the queue for an offer, if it does.
    pub(super) ready: Option<ReadyKey>,
    /// It is among the unstarted.
    pub(super) is_unstarted: bool,
    /// Of the run and the attempt last offered: every message of the attempt is compared with it.
    pub(super) offered: Option<(u32, u32, AttemptToken)>,
}

/// Order of offers: priority, then fresh before repeated, then what has most hanging on it, then document order.
pub(super) type ReadyKey = (Reverse<i32>, bool, Reverse<u32>, PhaseIx);

impl Session {
    /// A new session at its first revision. Nothing is offered before [`Input::Stored`] and [`OffersGate::Open`].
    pub fn start(
        uid: &str,
        plan: Arc<Plan>,
        revision: u64,
        strategy: Strategy,
        settings: Settings,
        now: Timestamp,
    ) -> Self {
        let rows = plan.phases().iter().map(|phase| Row::new(PhaseRecord::fresh(&phase.id, 1, now), now)).collect();
        let mut session = Self::bare(uid, plan, revision, strategy, settings, rows, now);
        session.begin_revision(now);
        session.relink(now);
        session.obey_settings(now);
        session.conclude(now);
        session
    }

    /// The session as it was stored, under the settings of today. Rows are matched by id; a phase that the record does
    /// not know begins anew. The shell sends [`Input::Resync`] before it opens the gate.
    pub fn restore(uid: &str, plan: Arc<Plan>, record: Record, settings: Settings, now: Timestamp) -> Self {
        let mut stored: std::collections::HashMap<PhaseId, PhaseRecord> =
            record.phases.into_iter().map(|row| (row.id.clone(), row)).collect();
        let rows = plan
            .phases()
            .iter()
            .map(|phase| {
                let row = stored
                    .remove(&phase.id)
                    .unwrap_or_else(|| PhaseRecord::fresh(&phase.id, record.runs_removed + 1, now));
                Row::new(row, now)
            })
            .collect();
        let before = Settings {
            pace: if record.paused_since.is_some() { Pace::Suspended } else { Pace::Going },
            shutdown: None,
            ..settings.clone()
        };
        let mut session = Self::bare(uid, plan, record.revision, record.strategy, before, rows, record.started_at);
        session.finished_at = record.finished_at;
        session.verdict = record.verdict;
        session.paused_since = record.paused_since;
        session.paused_total = record.paused_total;
        session.heard = record.heard;
        session.timed_out = record.timed_out;
        session.runs_removed = record.runs_removed;
        session.requests = record.requests;
        session.start_due = Some(now);
        session.note_progress(now);
        if session.verdict.is_none() {
            // What ran out while nobody listened is judged once runtimes had their say.
            session.listening_until = Some(after(now, session.silence()));
        }
        session.relink(now);
        session.change_settings(settings, now);
        session.conclude(now);
        session
    }

    fn bare(
        uid: &str,
        plan: Arc<Plan>,
        revision: u64,
        strategy: Strategy,
        settings: Settings,
        rows: Vec<Row>,
        started_at: Timestamp,
    ) -> Self {
        Self {
            uid: uid.to_owned(),
            plan,
            settings,
            revision,
            strategy,
            rows,
            counts: Counts::default(),
            in_flight: 0,
            open: 0,
            ready: BTreeSet::new(),
            unstarted: BTreeSet::new(),
            timers: BTreeSet::new(),
            outputs: VecDeque::new(),
            started_at,
            finished_at: None,
            verdict: None,
            paused_since: None,
            paused_total: Duration::ZERO,
            heard: false,
            timed_out: false,
            runs_removed: 0,
            requests: Vec::new(),
            gate: OffersGate::Deaf,
            unstored: false,
            listening_until: None,
            start_due: None,
            starts: 0,
            version: 0,
        }
    }

    /// Takes one input at the given time. Drain [`Self::poll_output`] before the next.
    pub fn handle(&mut self, input: Input, now: Timestamp) {
        debug_assert!(self.outputs.is_empty(), "outputs are drained after every input");
        match input {
            Input::Tick => {}
            Input::Stored => self.unstored = false,
            Input::Offers(gate) => self.change_gate(gate, now),
            Input::Resync => self.resync(now),
            Input::Ack(ack) => self.ack(ack, now),
            Input::Report(report) => self.report(&report, now),
            Input::Settings(settings) => self.change_settings(*settings, now),
            Input::Edit(edit) => self.edit(&edit, now),
            Input::Requests(requests) => self.request(&requests, now),
            Input::Released(wait) => self.release(&wait, now),
        }
        self.run_clocks(now);
        self.conclude(now);
        self.offer_ready(now);
    }

    /// What to do next; nothing when all is done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to send [`Input::Tick`], if nothing else comes before.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        if self.gate == OffersGate::Deaf {
            return None;
        }
        if self.listening_until.is_some() {
            return self.listening_until;
        }
        let phases = self.timers.first().map(|(due, _)| *due);
        [phases, self.start_timer(), self.revision_due()].into_iter().flatten().min()
    }

    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// When the revision started.
    pub fn started_at(&self) -> Timestamp {
        self.started_at
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    pub fn verdict(&self) -> Option<Verdict> {
        self.verdict
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    pub fn phase(&self, ix: PhaseIx) -> &PhaseRecord {
        &self.rows[ix.index()].record
    }

    /// Whether somebody answers: not while an offer went unanswered and nothing else is under way. Derived from the
    /// rows, so that it is the same after a restart.
    pub fn availability(&self) -> Availability {
        let is_unanswered = |row: &Row| row.wanted && row.record.reason == Some(PhaseReason::Unanswered);
        let bound = self.counts.queued + self.counts.running + self.counts.cancelling;
        match () {
            () if bound == 0 && self.rows.iter().any(is_unanswered) => Availability::Unavailable,
            () if self.heard => Availability::Available,
            () => Availability::Unknown,
        }
    }

    /// Rises whenever [`Self::record`] would answer otherwise than before.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Everything to store.
    pub fn record(&self) -> Record {
        Record {
            revision: self.revision,
            strategy: self.strategy,
            started_at: self.started_at,
            finished_at: self.finished_at,
            verdict: self.verdict,
            paused_since: self.paused_since,
            paused_total: self.paused_total,
            availability: self.availability(),
            heard: self.heard,
            timed_out: self.timed_out,
            runs_removed: self.runs_removed,
            phases: self.rows.iter().map(|row| row.record.clone()).collect(),
            requests: self.requests.clone(),
        }
    }

    /// What `.start` holds: the wanted phases with work left in this revision, in topological order.
    pub fn start_phases(&self) -> Vec<PhaseIx> {
        let left = |ix: &&PhaseIx| {
            let row = &self.rows[ix.index()];
            row.wanted && !row.record.state.is_terminal()
        };
        self.plan.topological_order().iter().filter(left).copied().collect()
    }

    /// Names the attempt that the phase's next or open offer is about.
    pub fn token(&self, ix: PhaseIx) -> AttemptToken {
        let Row { record, offered, .. } = self.row(ix);
        match offered {
            Some((run, attempt, token)) if (*run, *attempt) == (record.run, record.attempt) => token.clone(),
            _ => AttemptToken::new(&self.uid, &record.id, record.run, record.attempt),
        }
    }

    /// Whether this names the attempt that the phase's next or open offer is about.
    pub(super) fn is_token(&self, ix: PhaseIx, token: &AttemptToken) -> bool {
        let Row { record, offered, .. } = self.row(ix);
        match offered {
            Some((run, attempt, known)) if (*run, *attempt) == (record.run, record.attempt) => known == token,
            _ => *token == self.token(ix),
        }
    }

    // === inside the engine ===

    pub(super) fn push(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    /// Something that is stored changed.
    pub(super) fn touch(&mut self) {
        self.version += 1;
    }

    /// Nothing is offered until what is now true is stored: before a raised run or a new revision is first spoken of.
    pub(super) fn store_first(&mut self) {
        self.touch();
        self.unstored = true;
        // Said anew each time: a write that is under way does not have it. Once an input is enough.
        if !self.outputs.contains(&Output::Store) {
            self.push(Output::Store);
        }
    }

    pub(super) fn row(&self, ix: PhaseIx) -> &Row {
        &self.rows[ix.index()]
    }

    pub(super) fn row_mut(&mut self, ix: PhaseIx) -> &mut Row {
        &mut self.rows[ix.index()]
    }

    /// The only way from one state to another. Clears the state's clock; the caller sets a new one.
    pub(super) fn change(
        &mut self,
        ix: PhaseIx,
        to: PhaseState,
        reason: Option<PhaseReason>,
        message: &str,
        now: Timestamp,
    ) {
        self.uncount(ix);
        let row = &mut self.rows[ix.index()];
        let from = row.record.state;
        row.record.state = to;
        row.record.reason = reason;
        row.record.message = clipped(message);
        row.record.since = now;
        row.record.due = None;
        row.record.finished_at = to.is_terminal().then_some(now);
        let transition = Transition {
            phase: row.record.id.clone(),
            from,
            to,
            run: row.record.run,
            attempt: row.record.attempt,
            reason,
            message: row.record.message.clone(),
            ignored: row.record.ignored,
        };
        self.count(ix);
        self.set_timer(ix);
        self.note_progress(now);
        self.touch();
        self.push(Output::Transition(transition));
    }

    /// Sets the clock of the state just entered; none where the sum of now and nothing is asked.
    pub(super) fn set_due(&mut self, ix: PhaseIx, due: Option<Timestamp>) {
        let row = &mut self.rows[ix.index()];
        if row.record.due != due {
            row.record.due = due;
            self.touch();
        }
        self.set_timer(ix);
        self.set_ready(ix);
    }

    /// Puts the phase's next clock in order among the others.
    pub(super) fn set_timer(&mut self, ix: PhaseIx) {
        let timer = self.next_clock(ix);
        let row = &mut self.rows[ix.index()];
        if row.timer != timer {
            if let Some(old) = row.timer {
                self.timers.remove(&(old, ix));
            }
            if let Some(new) = timer {
                self.timers.insert((new, ix));
            }
            self.rows[ix.index()].timer = timer;
        }
    }

    /// The first phase whose clock has run out, its clock taken off; it is put back by whatever follows.
    pub(super) fn take_due(&mut self, now: Timestamp) -> Option<PhaseIx> {
        let &(due, ix) = self.timers.first()?;
        if due > now {
            return None;
        }
        self.timers.remove(&(due, ix));
        self.rows[ix.index()].timer = None;
        Some(ix)
    }

    /// Of the session, for jitter.
    pub(super) fn seed(&self) -> u64 {
        self.uid.bytes().fold(0, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)))
    }

    pub(super) fn dice(&self, ix: PhaseIx) -> Dice {
        let record = self.phase(ix);
        let parts = [ix.index() as u64, u64::from(record.run), u64::from(record.attempt), u64::from(record.offers)];
        Dice::throw(self.seed(), parts)
    }

    pub(super) fn backoff_of(&self, ix: PhaseIx) -> super::Backoff {
        effective_backoff(&self.settings.backoff, &self.plan.phase(ix).spec.backoff)
    }

    /// A fresh revision: its clock starts, nobody was heard, everything waits for the store.
    pub(super) fn begin_revision(&mut self, now: Timestamp) {
        self.started_at = now;
        self.finished_at = None;
        self.verdict = None;
        self.timed_out = false;
        self.paused_total = Duration::ZERO;
        self.paused_since = (self.settings.pace == Pace::Suspended).then_some(now);
        self.heard = false;
        self.start_due = Some(now);
        self.starts = 0;
        self.store_first();
    }

    /// Computes everything that follows from the rows anew: what is wanted, unmet and blocked, the sums and the queues.
    /// For the rare inputs that change the graph or what is wanted of it; linear in phases plus waits.
    pub(super) fn relink(&mut self, now: Timestamp) {
        let used = self.plan.indices().filter(|&ix| self.row(ix).record.used).collect::<Vec<_>>();
        let wanted = graph::wanted(&self.plan, self.settings.target_phase.as_ref(), used.into_iter());
        let depths = graph::depths(&self.plan);
        self.counts = Counts { total: u32::try_from(self.plan.len()).unwrap_or(u32::MAX), ..Counts::default() };
        (self.in_flight, self.open) = (0, 0);
        self.ready.clear();
        self.unstarted.clear();
        self.timers.clear();
        let plan = Arc::clone(&self.plan);
        for ix in plan.indices() {
            let unmet = self.unmet(ix);
            let row = self.row_mut(ix);
            row.depth = depths[ix.index()];
            row.unmet = unmet;
            row.wanted = wanted[ix.index()];
            (row.timer, row.ready, row.is_unstarted) = (None, None, false);
            self.counts.wanted += u32::from(wanted[ix.index()]);
            self.counts.idle += u32::from(!wanted[ix.index()]);
            self.count(ix);
        }
        for &ix in plan.topological_order() {
            self.settle(ix, now);
            self.set_timer(ix);
        }
    }

    fn unmet(&self, ix: PhaseIx) -> u32 {
        let here = self.plan.waits(ix).iter().filter(|on| !is_satisfied(&self.row(**on).record)).count();
        let released = &self.row(ix).record.released;
        let others = &self.plan.phase(ix).spec.wait_for_others;
        let elsewhere = others.iter().filter(|wait| !released.contains(wait)).count();
        u32::try_from(here + elsewhere).unwrap_or(u32::MAX)
    }
}

impl Row {
    pub(super) fn new(record: PhaseRecord, now: Timestamp) -> Self {
        Self {
            record,
            wanted: false,
            unmet: 0,
            depth: 0,
            heard_at: now,
            asked: false,
            timer: None,
            ready: None,
            is_unstarted: false,
            offered: None,
        }
    }

    /// An attempt is open: bound, or offered and not yet given up.
    pub(super) fn is_open(&self) -> bool {
        let offered = self.record.offers > 0 && matches!(self.record.state, PhaseState::Waiting | PhaseState::Offered);
        offered || self.record.state.is_bound()
    }
}

/// What waits for the phase may go on.
pub(super) fn is_satisfied(record: &PhaseRecord) -> bool {
    match record.state {
        PhaseState::Complete | PhaseState::Skipped => true,
        PhaseState::Failed => record.ignored,
        _ => false,
    }
}

/// Cut to [`MESSAGE_BYTES_MAX`] at a character.
pub(super) fn clipped(text: &str) -> String {
    let mut end = text.len().min(MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
