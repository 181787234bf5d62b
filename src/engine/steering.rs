//! What people and clocks do to a session: settings, suspend, shutdown, requests, timeouts, and the silence after a
//! resync.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    Control, OffersGate, Output, Pace, PhaseReason, PhaseState, Request, RequestAction, RequestRecord, RequestResult,
    RetryAdvice, Settings, Shutdown,
    session::{Session, is_satisfied},
    timing::{after, between, repeat_delay},
};
use crate::manifest::{ExternalWait, PhaseId, PhaseIx};

/// However soon an offer is made again, runtimes have so long to say what they hold: a way there and back, and a while at
/// whoever is busy.
const LISTENING_MIN: Duration = Duration::from_secs(2);

/// Missed heartbeats that make an attempt lost.
const HEARTBEATS_MISSED_MAX: u32 = 3;

impl Session {
    // === settings ===

    pub(super) fn change_settings(&mut self, mut settings: Settings, now: Timestamp) {
        // Of another plan: without a target everything would be wanted.
        if settings.target_phase.as_ref().is_some_and(|id| self.plan.index_of(id.as_str()).is_none()) {
            settings.target_phase.clone_from(&self.settings.target_phase);
        }
        let before = std::mem::replace(&mut self.settings, settings);
        if before.pace != self.settings.pace {
            self.change_pace(now);
        }
        if before.target_phase != self.settings.target_phase {
            self.relink(now);
        } else if before.timeouts != self.settings.timeouts {
            self.retime();
            self.rearm();
        }
        self.obey_settings(now);
    }

    /// What the settings ask of the phases as they are. Doing it twice does nothing more.
    pub(super) fn obey_settings(&mut self, now: Timestamp) {
        match self.settings.shutdown {
            Some(Shutdown::Cancel) => self.cancel_all(PhaseReason::Shutdown, now),
            Some(Shutdown::Drain) => self.drain(now),
            None => {}
        }
    }

    fn change_pace(&mut self, now: Timestamp) {
        match (self.settings.pace, self.paused_since) {
            (Pace::Suspended, None) => {
                self.paused_since = Some(now);
                self.push(Output::Control(Control::Pause));
            }
            (Pace::Going, Some(since)) => {
                self.paused_since = None;
                self.paused_total = self.paused_total.saturating_add(between(since, now));
                for row in &mut self.rows {
                    // A clock that began during the pause has stood still since it began.
                    if !matches!(row.record.state, PhaseState::Cancelling) {
                        let stood = between(since.max(row.record.since), now);
                        row.record.due = row.record.due.map(|due| after(due, stood));
                    }
                }
                self.push(Output::Control(Control::Resume));
            }
            _ => return,
        }
        self.touch();
        self.rearm();
    }

    /// Everything that is open is told to stop; nothing that is not begins.
    fn cancel_all(&mut self, reason: PhaseReason, now: Timestamp) {
        let is_open = |session: &Self, ix: PhaseIx| {
            let record = session.phase(ix);
            !record.state.is_terminal() && record.state != PhaseState::Idle
        };
        let is_news = |session: &Self, ix: PhaseIx| {
            let record = session.phase(ix);
            record.state != PhaseState::Cancelling || !is_final_cancel(record.reason)
        };
        let open: Vec<PhaseIx> = self.plan.indices().filter(|&ix| is_open(self, ix) && is_news(self, ix)).collect();
        if open.is_empty() {
            return;
        }
        self.push(Output::Control(Control::CancelSession));
        for ix in open {
            if self.phase(ix).state.is_bound() {
                self.begin_cancelling(ix, reason, now);
            } else {
                self.change(ix, PhaseState::Cancelled, Some(reason), "", now);
            }
        }
    }

    /// Nothing new begins; a held phase is given up.
    fn drain(&mut self, now: Timestamp) {
        for ix in self.unstarted.iter().copied().collect::<Vec<_>>() {
            self.withdraw(ix);
            self.change(ix, PhaseState::Cancelled, Some(PhaseReason::Drained), "", now);
        }
        for ix in self.plan.clone().indices() {
            if self.row(ix).wanted && self.phase(ix).state == PhaseState::Held {
                let message = self.phase(ix).message.clone();
                self.fail_phase(ix, PhaseReason::AttemptsExhausted, &message, now);
            }
        }
    }

    /// The runtime is told to stop, and what it says within the grace still counts.
    fn begin_cancelling(&mut self, ix: PhaseIx, reason: PhaseReason, now: Timestamp) {
        self.change(ix, PhaseState::Cancelling, Some(reason), "", now);
        self.set_due(ix, Some(after(now, self.settings.timeouts.cancel)));
    }

    /// The grace is over, or the runtime said that it has stopped.
    pub(super) fn end_cancelling(&mut self, ix: PhaseIx, now: Timestamp) {
        let record = self.phase(ix);
        let reason = record.reason.unwrap_or(PhaseReason::Shutdown);
        let goes_on = self.settings.shutdown.is_none() && !self.timed_out;
        match reason {
            _ if record.superseded && goes_on => self.rerun(ix, now),
            PhaseReason::TotalTimeout => self.fail_attempt(ix, reason, "", RetryAdvice::Never, now),
            PhaseReason::AttemptTimeout | PhaseReason::StartTimeout => {
                self.fail_attempt(ix, reason, "", RetryAdvice::AsConfigured, now);
            }
            _ => self.change(ix, PhaseState::Cancelled, Some(reason), "", now),
        }
    }

    // === the bus ===

    pub(super) fn change_gate(&mut self, gate: OffersGate, now: Timestamp) {
        if self.gate == gate {
            return;
        }
        self.gate = gate;
        if gate == OffersGate::Open {
            // Nobody could be heard: silence until now proves nothing.
            for row in &mut self.rows {
                row.heard_at = row.heard_at.max(now);
                row.asked = false;
            }
        }
        self.rearm();
    }

    /// Asks who holds what. Until the silence is over nothing is offered, granted or judged.
    pub(super) fn resync(&mut self, now: Timestamp) {
        if self.verdict.is_some() && self.in_flight == 0 {
            return;
        }
        self.push(Output::Control(Control::Report { attempt: None }));
        self.say_again();
        self.listening_until = Some(after(now, self.silence()));
        for row in &mut self.rows {
            row.heard_at = row.heard_at.max(now);
            row.asked = false;
        }
        self.rearm();
    }

    /// What was said once and whoever was away has not heard.
    fn say_again(&mut self) {
        if self.paused_since.is_some() {
            self.push(Output::Control(Control::Pause));
        }
        let cancelling: Vec<PhaseIx> =
            self.plan.indices().filter(|&ix| self.phase(ix).state == PhaseState::Cancelling).collect();
        // Of a revision that was shut down and has a successor, only the attempts are meant.
        let is_of_all = self.settings.shutdown == Some(Shutdown::Cancel) || self.timed_out;
        if is_of_all && cancelling.iter().any(|&ix| is_final_cancel(self.phase(ix).reason)) {
            return self.push(Output::Control(Control::CancelSession));
        }
        for ix in cancelling {
            self.cancel_attempt(ix);
        }
    }

    /// How long is listened after it was asked who holds what.
    pub(super) fn silence(&self) -> Duration {
        self.settings.timeouts.offer.max(LISTENING_MIN)
    }

    /// A phase of another manifest is done: seen once, kept for good.
    pub(super) fn release(&mut self, wait: &ExternalWait, now: Timestamp) {
        let waiting: Vec<PhaseIx> = self
            .plan
            .indices()
            .filter(|&ix| {
                self.plan.phase(ix).spec.wait_for_others.contains(wait) && !self.phase(ix).released.contains(wait)
            })
            .collect();
        for &ix in &waiting {
            self.row_mut(ix).record.released.push(wait.clone());
        }
        if !waiting.is_empty() {
            self.touch();
            self.relink(now);
        }
    }

    // === clocks ===

    /// Judges every clock that has run out, unless what would have stopped it may have gone unheard.
    pub(super) fn run_clocks(&mut self, now: Timestamp) {
        if self.gate == OffersGate::Deaf {
            return;
        }
        match self.listening_until {
            Some(until) if now < until => return,
            Some(_) => self.listening_until = None,
            None => {}
        }
        if self.revision_due().is_some_and(|due| due <= now) {
            self.timed_out = true;
            self.touch();
            self.cancel_all(PhaseReason::RevisionTimeout, now);
        }
        while let Some(ix) = self.take_due(now) {
            self.run_clock(ix, now);
            self.set_timer(ix);
        }
    }

    fn run_clock(&mut self, ix: PhaseIx, now: Timestamp) {
        let record = self.phase(ix);
        let state = record.state;
        let is_over = |due: Option<Timestamp>| due.is_some_and(|due| due <= now);
        if is_over(self.total_due(ix)) && state != PhaseState::Cancelling {
            return match state {
                PhaseState::Queued | PhaseState::Running => self.time_out(ix, PhaseReason::TotalTimeout, now),
                _ => {
                    self.withdraw(ix);
                    self.fail_attempt(ix, PhaseReason::TotalTimeout, "", RetryAdvice::Never, now);
                }
            };
        }
        match state {
            // With a reason it sits out the pause between offers, and what it waits for was reopened meanwhile.
            PhaseState::Waiting if self.row(ix).unmet > 0 && record.reason.is_none() => {
                self.fail_phase(ix, PhaseReason::WaitTimeout, "", now);
            }
            PhaseState::Waiting => self.set_due(ix, None),
            PhaseState::Offered => self.expire_offer(ix, now),
            PhaseState::BackingOff => self.wait(ix, now),
            PhaseState::Queued if self.paused_since.is_none() && is_over(record.due) => {
                self.time_out(ix, PhaseReason::StartTimeout, now);
            }
            PhaseState::Running if is_over(self.attempt_due(ix)) => {
                self.time_out(ix, PhaseReason::AttemptTimeout, now);
            }
            PhaseState::Queued | PhaseState::Running => self.check_heartbeat(ix, now),
            PhaseState::Cancelling => self.end_cancelling(ix, now),
            _ => {}
        }
    }

    fn time_out(&mut self, ix: PhaseIx, reason: PhaseReason, now: Timestamp) {
        self.cancel_attempt(ix);
        self.begin_cancelling(ix, reason, now);
    }

    /// Nobody took it in time: its slot goes to the next, and it asks again later.
    fn expire_offer(&mut self, ix: PhaseIx, now: Timestamp) {
        let record = self.phase(ix);
        let pause = repeat_delay(record.offers, self.dice(ix));
        self.change(ix, PhaseState::Waiting, Some(PhaseReason::Unanswered), "", now);
        self.set_due(ix, Some(after(now, pause)));
    }

    /// Two thirds through the silence the runtime is asked; at its end the attempt is lost.
    fn check_heartbeat(&mut self, ix: PhaseIx, now: Timestamp) {
        let Some(silence) = self.silence_max(ix) else { return };
        let row = self.row_mut(ix);
        if after(row.heard_at, silence) <= now {
            self.cancel_attempt(ix);
            return self.fail_attempt(ix, PhaseReason::HeartbeatLost, "", RetryAdvice::AsConfigured, now);
        }
        if !row.asked && after(row.heard_at, silence * 2 / 3) <= now {
            row.asked = true;
            let attempt = Some((row.record.id.clone(), self.token(ix)));
            self.push(Output::Control(Control::Report { attempt }));
        }
    }

    /// Puts every clock in order anew, after what they depend on changed for all.
    fn rearm(&mut self) {
        for ix in self.plan.clone().indices() {
            self.set_timer(ix);
        }
    }

    /// A changed start timeout holds for what is queued already.
    fn retime(&mut self) {
        for ix in self.plan.clone().indices() {
            if self.phase(ix).state == PhaseState::Queued {
                let start = self.plan.phase(ix).spec.timeouts.start.or(self.settings.timeouts.start);
                self.set_due(ix, start.map(|start| after(self.phase(ix).since, start)));
            }
        }
    }

    /// The earliest moment at which a clock of the phase may have run out; none while it stands still.
    pub(super) fn next_clock(&self, ix: PhaseIx) -> Option<Timestamp> {
        let row = self.row(ix);
        let record = &row.record;
        let is_paused = self.paused_since.is_some();
        let is_shut = self.gate != OffersGate::Open;
        let own = match record.state {
            PhaseState::Offered if is_paused || is_shut => None,
            PhaseState::Waiting | PhaseState::BackingOff | PhaseState::Queued if is_paused => None,
            PhaseState::Running => self.attempt_due(ix),
            state if state.is_terminal() || matches!(state, PhaseState::Idle | PhaseState::Held) => return None,
            _ => record.due,
        };
        let heartbeat = match record.state {
            PhaseState::Queued | PhaseState::Running if !is_shut => self
                .silence_max(ix)
                .map(|silence| after(row.heard_at, if row.asked { silence } else { silence * 2 / 3 })),
            _ => None,
        };
        let total = if record.state == PhaseState::Cancelling { None } else { self.total_due(ix) };
        [own, heartbeat, total].into_iter().flatten().min()
    }

    fn attempt_due(&self, ix: PhaseIx) -> Option<Timestamp> {
        let attempt = self.plan.phase(ix).spec.timeouts.attempt.or(self.settings.timeouts.attempt)?;
        Some(after(self.phase(ix).since, attempt))
    }

    fn total_due(&self, ix: PhaseIx) -> Option<Timestamp> {
        let total = self.plan.phase(ix).spec.timeouts.total?;
        Some(after(self.phase(ix).started_at?, total))
    }

    fn silence_max(&self, ix: PhaseIx) -> Option<Duration> {
        let set = self.plan.phase(ix).spec.timeouts.heartbeat.or(self.settings.timeouts.heartbeat);
        set.or_else(|| Some(self.phase(ix).heartbeat?.saturating_mul(HEARTBEATS_MISSED_MAX)))
    }

    pub(super) fn revision_due(&self) -> Option<Timestamp> {
        let is_running = self.verdict.is_none() && !self.timed_out && self.paused_since.is_none();
        let timeout = self.settings.timeouts.revision.filter(|_| is_running)?;
        Some(after(self.started_at, timeout.saturating_add(self.paused_total)))
    }

    // === requests ===

    /// Carries out the tokens not seen yet; forgets the results of those that are gone from spec.
    pub(super) fn request(&mut self, requests: &[Request], now: Timestamp) {
        let before = self.requests.len();
        self.requests.retain(|known| requests.iter().any(|request| request.token == known.token));
        if self.requests.len() != before {
            self.touch();
        }
        for request in requests {
            if self.requests.iter().any(|known| known.token == request.token) {
                continue;
            }
            let result = match self.carry_out(request, now) {
                Ok(()) => RequestResult::Done,
                Err(why) => RequestResult::Refused(why),
            };
            self.requests.push(RequestRecord { token: request.token.clone(), result });
            self.touch();
        }
    }

    fn carry_out(&mut self, request: &Request, now: Timestamp) -> Result<(), String> {
        if self.settings.shutdown.is_some() {
            return Err("the session is shut down; clear spec.shutdown first".to_owned());
        }
        if request.action == RequestAction::Restart {
            return self.restart(now);
        }
        let id: &PhaseId = request.phase.as_ref().ok_or("the request names no phase")?;
        let ix = self.plan.index_of(id.as_str()).ok_or_else(|| format!("there is no phase {id}"))?;
        match request.action {
            RequestAction::Retry => self.retry(ix, now),
            RequestAction::Skip => self.settle_by_person(ix, PhaseState::Skipped, now),
            RequestAction::Complete => self.settle_by_person(ix, PhaseState::Complete, now),
            RequestAction::Use => self.use_phase(ix, now),
            RequestAction::Restart => unreachable!("carried out above"),
        }
    }

    fn restart(&mut self, now: Timestamp) -> Result<(), String> {
        if self.verdict.is_none() {
            return Err("the session is still running; wait for its verdict or edit the plan".to_owned());
        }
        for ix in self.plan.clone().indices() {
            if self.phase(ix).state != PhaseState::Idle {
                self.reopen(ix, now);
            }
        }
        self.begin_revision(now);
        self.relink(now);
        Ok(())
    }

    fn retry(&mut self, ix: PhaseIx, now: Timestamp) -> Result<(), String> {
        match self.phase(ix).state {
            PhaseState::Failed | PhaseState::Cancelled | PhaseState::Held => {}
            PhaseState::UpstreamFailed => {
                let causes: Vec<&str> = self.phase(ix).blocked_by.iter().map(PhaseId::as_str).collect();
                return Err(format!("it waits for what failed: retry {} instead", causes.join(", ")));
            }
            state => return Err(format!("it is {state}; only Failed, Cancelled and Held can be retried")),
        }
        if !self.row(ix).wanted {
            return Err("the phase is not wanted; ask for it with Use".to_owned());
        }
        self.reopen(ix, now);
        self.relink(now);
        Ok(())
    }

    fn settle_by_person(&mut self, ix: PhaseIx, to: PhaseState, now: Timestamp) -> Result<(), String> {
        let record = self.phase(ix);
        if matches!(record.state, PhaseState::Complete | PhaseState::Skipped) {
            return Err(format!("it is {} already", record.state));
        }
        if record.state.is_bound() {
            self.cancel_attempt(ix);
        } else {
            self.withdraw(ix);
        }
        let was_satisfied = is_satisfied(self.phase(ix));
        self.uncount(ix);
        let record = &mut self.row_mut(ix).record;
        record.ignored = false;
        record.superseded = false;
        record.blocked_by.clear();
        self.count(ix);
        self.change(ix, to, Some(PhaseReason::Requested), "", now);
        if !was_satisfied {
            self.relink(now);
        }
        Ok(())
    }

    fn use_phase(&mut self, ix: PhaseIx, now: Timestamp) -> Result<(), String> {
        if self.row(ix).wanted {
            return Err("the phase is wanted already".to_owned());
        }
        self.row_mut(ix).record.used = true;
        self.store_first();
        self.relink(now);
        Ok(())
    }
}

/// Of the whole session, and not of one attempt that is tried again.
pub(super) fn is_final_cancel(reason: Option<PhaseReason>) -> bool {
    matches!(reason, Some(PhaseReason::Shutdown | PhaseReason::RevisionTimeout))
}
