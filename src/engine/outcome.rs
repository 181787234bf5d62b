//! How attempts, phases and sessions end.

use jiff::Timestamp;

use super::{
    BLOCKED_BY_MAX, Control, FailurePolicy, HandlerEffect, HandlerKind, Output, PhaseReason, PhaseState, RetryAdvice,
    Strategy, Verdict,
    session::{Session, is_satisfied},
    timing::{after, backoff_delay, between},
};
use crate::manifest::{FailureAction, Handler, OnExhausted, PhaseId, PhaseIx, SuccessAction};

impl Session {
    /// The open attempt ended well, by the word of a runtime.
    pub(super) fn complete_attempt(&mut self, ix: PhaseIx, message: &str, now: Timestamp) {
        if self.row(ix).record.superseded {
            return self.rerun(ix, now);
        }
        self.change(ix, PhaseState::Complete, None, message, now);
        self.push_handler(ix, HandlerKind::Success);
        self.satisfy(ix);
    }

    /// The open attempt ended badly: another try, a person's turn, or the phase's own failure.
    pub(super) fn fail_attempt(
        &mut self,
        ix: PhaseIx,
        reason: PhaseReason,
        message: &str,
        advice: RetryAdvice,
        now: Timestamp,
    ) {
        let row = self.row(ix);
        if row.record.superseded {
            return self.rerun(ix, now);
        }
        let spec = &self.plan.phase(ix).spec;
        let spent = row.record.started_at.map_or(std::time::Duration::ZERO, |started| between(started, now));
        let has_time = spec.timeouts.total.is_none_or(|total| spent < total);
        let has_tries = row.record.attempt < spec.max_attempts;
        if has_tries && has_time && advice != RetryAdvice::Never {
            if !row.wanted {
                // Nobody wants it tried again, unless it comes to be wanted again.
                self.change(ix, PhaseState::Idle, Some(reason), message, now);
                return self.end_offers(ix);
            }
            return self.back_off(ix, reason, message, advice, now);
        }
        match spec.on_exhausted {
            // Nobody is asked to decide about a session that is being shut down.
            OnExhausted::Hold if self.settings.shutdown.is_none() && row.wanted => {
                self.change(ix, PhaseState::Held, Some(PhaseReason::AttemptsExhausted), message, now);
                self.end_offers(ix);
                self.push_handler(ix, HandlerKind::Held);
            }
            OnExhausted::Hold | OnExhausted::Fail => self.fail_phase(ix, reason, message, now),
        }
    }

    /// The next attempt comes later. Under Runtime no clock brings it: the runtime's own `running` does.
    fn back_off(&mut self, ix: PhaseIx, reason: PhaseReason, message: &str, advice: RetryAdvice, now: Timestamp) {
        let delay = match advice {
            RetryAdvice::After(delay) => delay,
            _ => backoff_delay(&self.backoff_of(ix), self.row(ix).record.attempt, self.dice(ix)),
        };
        self.change(ix, PhaseState::BackingOff, Some(reason), message, now);
        self.end_offers(ix);
        if self.strategy != Strategy::Runtime {
            self.set_due(ix, Some(after(now, delay)));
        }
    }

    /// The open attempt is over: its token is no longer answered to.
    fn end_offers(&mut self, ix: PhaseIx) {
        self.uncount(ix);
        let record = &mut self.row_mut(ix).record;
        record.offers = 0;
        record.tokenless = false;
        self.count(ix);
    }

    /// The phase's own failure, for good: `onFailure` decides.
    pub(super) fn fail_phase(&mut self, ix: PhaseIx, reason: PhaseReason, message: &str, now: Timestamp) {
        let ignored = self.plan.phase(ix).spec.on_failure.action == FailureAction::Continue;
        self.uncount(ix);
        self.row_mut(ix).record.ignored = ignored;
        self.count(ix);
        self.change(ix, PhaseState::Failed, Some(reason), message, now);
        self.push_handler(ix, HandlerKind::Failure);
        if ignored {
            self.satisfy(ix);
        } else if self.row(ix).wanted {
            self.raise(ix, now);
        }
    }

    /// What waits for the phase has one thing less to wait for.
    pub(super) fn satisfy(&mut self, ix: PhaseIx) {
        let plan = std::sync::Arc::clone(&self.plan);
        for &on in plan.dependents(ix) {
            let row = self.row_mut(on);
            row.unmet = row.unmet.saturating_sub(1);
            if row.unmet == 0 && row.record.state == PhaseState::Waiting {
                // The clock of a phase that waits for others is `waitFor.timeout`: it has served.
                self.set_due(on, None);
            }
        }
    }

    /// A failure that counts: what hangs on it never starts, and under Stop nothing else that has not started does.
    fn raise(&mut self, root: PhaseIx, now: Timestamp) {
        self.block_dependents(root, now);
        if self.settings.failure_policy == FailurePolicy::Stop {
            for ix in self.unstarted.iter().copied().collect::<Vec<_>>() {
                self.withdraw(ix);
                self.change(ix, PhaseState::Cancelled, Some(PhaseReason::Stopped), "", now);
            }
        }
    }

    /// Walks down from a root cause. A phase that has its fill of root causes is not walked through again, which keeps
    /// many failures over one graph linear.
    fn block_dependents(&mut self, root: PhaseIx, now: Timestamp) {
        let plan = std::sync::Arc::clone(&self.plan);
        let cause = plan.id(root).clone();
        let mut walk: Vec<PhaseIx> = plan.dependents(root).to_vec();
        while let Some(ix) = walk.pop() {
            let record = &self.row(ix).record;
            let is_new = match record.state {
                PhaseState::Waiting | PhaseState::Offered if self.row(ix).wanted => {
                    self.withdraw(ix);
                    self.row_mut(ix).record.blocked_by = vec![cause.clone()];
                    self.change(ix, PhaseState::UpstreamFailed, Some(PhaseReason::DependencyFailed), "", now);
                    true
                }
                PhaseState::UpstreamFailed => {
                    let causes = &mut self.row_mut(ix).record.blocked_by;
                    let is_new = causes.len() < BLOCKED_BY_MAX && !causes.contains(&cause);
                    if is_new {
                        causes.push(cause.clone());
                        causes.sort_by_key(|id| plan.index_of(id.as_str()));
                        self.touch();
                    }
                    is_new
                }
                _ => false,
            };
            if is_new {
                walk.extend(plan.dependents(ix));
            }
        }
    }

    /// Takes back an open offer that nobody took: whoever is about to is told.
    pub(super) fn withdraw(&mut self, ix: PhaseIx) {
        let row = self.row(ix);
        if row.is_open() && !row.record.state.is_bound() {
            let (phase, token) = (row.record.id.clone(), self.token(ix));
            self.push(Output::Control(Control::Cancel { phase, token, runtime: None }));
        }
    }

    /// Tells whoever holds the open attempt to stop.
    pub(super) fn cancel_attempt(&mut self, ix: PhaseIx) {
        let record = self.phase(ix);
        let (phase, token, runtime) = (record.id.clone(), self.token(ix), record.runtime.clone());
        self.push(Output::Control(Control::Cancel { phase, token, runtime }));
    }

    /// Opens the next run of a phase: nothing of the last one is kept but what other manifests released and what was
    /// asked for. The caller relinks.
    pub(super) fn reopen(&mut self, ix: PhaseIx, now: Timestamp) {
        self.uncount(ix);
        let record = &mut self.row_mut(ix).record;
        let run = record.run + 1;
        let (released, used) = (std::mem::take(&mut record.released), record.used);
        let id = record.id.clone();
        *record = super::PhaseRecord { released, used, ..super::PhaseRecord::fresh(&id, run, now) };
        self.count(ix);
        self.set_timer(ix);
        self.store_first();
    }

    /// An edit changed the phase while it ran; it has finished, and runs again as it is now.
    pub(super) fn rerun(&mut self, ix: PhaseIx, now: Timestamp) {
        self.reopen(ix, now);
        self.relink(now);
        self.obey_settings(now);
    }

    /// Puts one phase where its surroundings say it belongs. Called in topological order, or for one that just entered
    /// Waiting.
    pub(super) fn settle(&mut self, ix: PhaseIx, now: Timestamp) {
        let row = self.row(ix);
        let (state, wanted) = (row.record.state, row.wanted);
        let untried = row.record.attempt == 0 && row.record.offers == 0;
        if !wanted {
            if matches!(state, PhaseState::Waiting | PhaseState::Offered | PhaseState::BackingOff | PhaseState::Held) {
                self.withdraw(ix);
                self.change(ix, PhaseState::Idle, None, "", now);
            }
            return;
        }
        let causes = self.causes(ix);
        let row = self.row(ix);
        match state {
            PhaseState::Idle if causes.is_empty() => self.wait(ix, now),
            PhaseState::UpstreamFailed if causes.is_empty() => self.unblock(ix, untried, now),
            // What is written stays while it is true, so that a restart finds nothing to correct.
            PhaseState::UpstreamFailed if row.record.blocked_by.iter().all(|id| self.is_cause(id)) => {}
            PhaseState::UpstreamFailed => {
                self.row_mut(ix).record.blocked_by = causes;
                self.touch();
            }
            PhaseState::Idle | PhaseState::Waiting if !causes.is_empty() => {
                self.withdraw(ix);
                self.row_mut(ix).record.blocked_by = causes;
                self.change(ix, PhaseState::UpstreamFailed, Some(PhaseReason::DependencyFailed), "", now);
            }
            PhaseState::Cancelled if self.is_stopped(ix) && self.counts.failed == 0 => self.unblock(ix, untried, now),
            PhaseState::Waiting if row.unmet > 0 && untried && row.record.due.is_none() => self.wait_clock(ix, now),
            // Never offered, nothing unmet: a clock that is left is that of a wait which is over.
            PhaseState::Waiting if row.unmet == 0 && row.record.offers == 0 => self.set_due(ix, None),
            // Under Runtime no clock brings the next attempt; the strategy of today needs one.
            PhaseState::BackingOff if self.strategy != Strategy::Runtime && row.record.due.is_none() => {
                self.wait(ix, now);
            }
            _ => {}
        }
    }

    fn is_stopped(&self, ix: PhaseIx) -> bool {
        self.row(ix).record.reason == Some(PhaseReason::Stopped)
    }

    /// What stopped the phase is gone. If its token was ever spoken of, a runtime may have been told to drop it: the next
    /// one is another.
    fn unblock(&mut self, ix: PhaseIx, untried: bool, now: Timestamp) {
        self.row_mut(ix).record.blocked_by.clear();
        if !untried {
            self.reopen(ix, now);
        }
        self.wait(ix, now);
    }

    /// Enters Waiting.
    pub(super) fn wait(&mut self, ix: PhaseIx, now: Timestamp) {
        self.change(ix, PhaseState::Waiting, None, "", now);
        self.wait_clock(ix, now);
    }

    fn wait_clock(&mut self, ix: PhaseIx, now: Timestamp) {
        let row = self.row(ix);
        let timeout = self.plan.phase(ix).spec.wait_for.timeout.filter(|_| row.unmet > 0);
        self.set_due(ix, timeout.map(|timeout| after(now, timeout)));
    }

    fn is_cause(&self, id: &PhaseId) -> bool {
        self.plan.index_of(id.as_str()).is_some_and(|ix| {
            let record = self.phase(ix);
            record.state.is_terminal() && !is_satisfied(record)
        })
    }

    /// Root causes that keep the phase from ever starting, in document order, at most [`BLOCKED_BY_MAX`].
    fn causes(&self, ix: PhaseIx) -> Vec<PhaseId> {
        let mut causes: Vec<PhaseIx> = Vec::new();
        let mut stopped: Vec<PhaseIx> = Vec::new();
        for &on in self.plan.waits(ix) {
            let record = &self.row(on).record;
            match record.state {
                _ if is_satisfied(record) || !record.state.is_terminal() => {}
                PhaseState::UpstreamFailed => {
                    causes.extend(record.blocked_by.iter().filter_map(|id| self.plan.index_of(id.as_str())));
                }
                // What a stop cancelled goes on when the stop is lifted; it is named where nothing better can be.
                PhaseState::Cancelled if self.is_stopped(on) => {
                    if self.counts.failed > 0 {
                        stopped.push(on);
                    }
                }
                _ => causes.push(on),
            }
        }
        if causes.is_empty() {
            causes = stopped;
        }
        causes.sort_unstable();
        causes.dedup();
        causes.truncate(BLOCKED_BY_MAX);
        causes.into_iter().map(|ix| self.plan.id(ix).clone()).collect()
    }

    /// The session ends when every wanted phase has; it goes on when one has not any more.
    pub(super) fn conclude(&mut self, now: Timestamp) {
        if self.open > 0 {
            if self.verdict.take().is_some() {
                self.finished_at = None;
                self.started_at = now;
                self.timed_out = false;
                self.paused_total = std::time::Duration::ZERO;
                self.touch();
                self.push(Output::Reopened);
            }
            return;
        }
        if self.verdict.is_none() {
            let verdict = self.folded();
            self.verdict = Some(verdict);
            self.finished_at = Some(now);
            self.touch();
            self.push(Output::Verdict(verdict));
        }
    }

    /// From wanted phases' own outcomes, never from leaves.
    fn folded(&self) -> Verdict {
        let is_cancelled = |reason| matches!(reason, Some(PhaseReason::Shutdown | PhaseReason::Drained));
        let by_person = self
            .rows
            .iter()
            .any(|row| row.wanted && row.record.state == PhaseState::Cancelled && is_cancelled(row.record.reason));
        match () {
            () if by_person => Verdict::Cancelled,
            () if self.counts.done() == self.counts.wanted => Verdict::Succeeded,
            () => Verdict::Failed,
        }
    }

    /// Once per (phase, run): every caller has just left the one state from which this kind is reached.
    fn push_handler(&mut self, ix: PhaseIx, kind: HandlerKind) {
        let spec = &self.plan.phase(ix).spec;
        let does_something = match kind {
            HandlerKind::Failure | HandlerKind::Held => says_something(&spec.on_failure),
            HandlerKind::Success => says_something(&spec.on_success) || spec.on_success.action == SuccessAction::Raise,
        };
        if does_something {
            let word = match kind {
                HandlerKind::Failure => "failure",
                HandlerKind::Success => "success",
                HandlerKind::Held => "held",
            };
            let record = self.phase(ix);
            // The token of attempt 0 names the run: no attempt has that number.
            let run = super::AttemptToken::new(&self.uid, &record.id, record.run, 0);
            self.push(Output::Handler(HandlerEffect { id: format!("{run}-{word}"), phase: ix, kind }));
        }
    }
}

fn says_something<Action>(handler: &Handler<Action>) -> bool {
    !(handler.messages.is_empty() && handler.email.is_empty() && handler.slack.is_empty() && handler.labels.is_empty())
}
