//! What runtimes say: acks and reports, and which attempt they are about.

use jiff::Timestamp;

use super::{
    Ack, Answer, AskId, AttemptToken, Control, Grant, Note, NoteKind, Output, PhaseReason, PhaseState, Report,
    ReportStatus, RetryAdvice, Strategy,
    session::Session,
    timing::{after, backoff_delay},
};
use crate::manifest::{PhaseId, PhaseIx};

/// How many attempts past the known one a token may name: what a crash can have forgotten between two status writes.
const FORGOTTEN_ATTEMPTS_MAX: u32 = 64;

/// Longest runtime name kept, in bytes.
const RUNTIME_BYTES_MAX: usize = 128;

/// Which attempt a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    /// The open one, by its token.
    Open,
    /// Whichever is open: the message has no token (early peers).
    Unnamed,
    /// One that we offered and a crash forgot.
    Forgotten(u32),
    Stale,
}

impl Session {
    pub(super) fn ack(&mut self, ack: Ack, now: Timestamp) {
        let Some(ix) = self.plan.index_of(ack.phase.as_str()) else {
            self.refuse(ack.ask);
            return self.note(NoteKind::UnknownPhase, &ack.phase);
        };
        self.hear();
        let about = self.about(ix, ack.token.as_ref());
        if about == About::Stale {
            self.refuse(ack.ask);
            return self.note(NoteKind::StaleToken, &ack.phase);
        }
        if !self.row(ix).wanted {
            self.refuse(ack.ask);
            return self.note(NoteKind::NotWanted, &ack.phase);
        }
        self.remember(ix, about, now);
        match ack.answer {
            Answer::Declined => self.declined(ix, ack, now),
            Answer::Accepted | Answer::AcceptedQueued => self.accepted(ix, ack, now),
        }
    }

    fn accepted(&mut self, ix: PhaseIx, ack: Ack, now: Timestamp) {
        let row = self.row(ix);
        let state = row.record.state;
        if row.is_open() && !state.is_bound() {
            let may_grant = self.listening_until.is_none() && (state == PhaseState::Offered || self.has_slot());
            if ack.ask.is_some() && !may_grant {
                self.refuse(ack.ask);
                return self.note(NoteKind::NoEffect, &ack.phase);
            }
            let to = if ack.answer == Answer::AcceptedQueued { PhaseState::Queued } else { PhaseState::Running };
            self.bind(ix, to, ack.runtime.as_deref(), ack.token.is_none(), now);
            self.row_mut(ix).record.heartbeat = ack.heartbeat;
            self.set_timer(ix);
            self.answer(ack.ask, Grant::Granted);
            return;
        }
        let holder = self.phase(ix).runtime.as_deref();
        if state.is_bound() && same_runtime(holder, ack.runtime.as_deref()) {
            // It may not have heard our answer: the grant is its own already. A holder without a name is somebody else
            // than whoever asks.
            let is_named = holder.is_some() && ack.runtime.is_some();
            let is_its_own = is_named && state != PhaseState::Cancelling;
            if is_named {
                // An ack of what it holds is a sign of life as good as a report.
                let row = self.row_mut(ix);
                row.heard_at = now;
                row.asked = false;
                self.set_timer(ix);
            }
            self.answer(ack.ask, if is_its_own { Grant::Granted } else { Grant::Refused });
            return self.note(NoteKind::NoEffect, &ack.phase);
        }
        self.refuse(ack.ask);
        match (ack.ask, ack.token) {
            // It asked and heard no; or it knows no tokens, and so no command about one attempt.
            (Some(_), _) | (None, None) => self.note(NoteKind::NoEffect, &ack.phase),
            (None, Some(token)) => {
                let kind = if state.is_bound() { NoteKind::DoubleAccept } else { NoteKind::NoEffect };
                self.note(kind, &ack.phase);
                let cancel = Control::Cancel { phase: ack.phase, token, runtime: ack.runtime };
                self.push(Output::Control(cancel));
            }
        }
    }

    fn declined(&mut self, ix: PhaseIx, ack: Ack, now: Timestamp) {
        self.refuse(ack.ask);
        let why = ack.reason.unwrap_or_default();
        if why == "Expired" {
            self.note(NoteKind::ClockSkew, &ack.phase);
        }
        if self.row(ix).record.state != PhaseState::Offered {
            return self.note(NoteKind::NoEffect, &ack.phase);
        }
        if self.strategy == Strategy::Directed {
            return self.fail_attempt(ix, PhaseReason::Declined, &why, RetryAdvice::AsConfigured, now);
        }
        let delay = backoff_delay(&self.backoff_of(ix), self.phase(ix).offers, self.dice(ix));
        self.change(ix, PhaseState::Waiting, Some(PhaseReason::Declined), &why, now);
        self.set_due(ix, Some(after(now, delay)));
    }

    pub(super) fn report(&mut self, report: &Report, now: Timestamp) {
        let Some(ix) = self.plan.index_of(report.phase.as_str()) else {
            return self.note(NoteKind::UnknownPhase, &report.phase);
        };
        self.hear();
        let about = self.about(ix, report.token.as_ref());
        if report.status == ReportStatus::Running && self.is_over(ix, about, report.token.as_ref()) {
            self.call_off(report);
        }
        if about == About::Stale {
            return self.note(NoteKind::StaleToken, &report.phase);
        }
        self.remember(ix, about, now);
        if !self.is_believed(ix, report, now) {
            return;
        }
        let message = report.message.as_deref().unwrap_or_default();
        match (self.phase(ix).state, report.status) {
            (PhaseState::Cancelling, ReportStatus::Failed) => self.end_cancelling(ix, now),
            (PhaseState::Cancelling, ReportStatus::Running) => {}
            (_, ReportStatus::Running) => self.progress(ix, report, now),
            (_, ReportStatus::Complete) => self.complete_attempt(ix, message, now),
            (_, ReportStatus::Failed) => self.fail_attempt(ix, PhaseReason::RuntimeFailed, message, report.retry, now),
        }
    }

    /// Whether this attempt is known to be over, and not merely unknown: a session that another process has taken over
    /// must not call off what that one began in a later run.
    fn is_over(&self, ix: PhaseIx, about: About, token: Option<&AttemptToken>) -> bool {
        let record = self.phase(ix);
        let Some(token) = token.filter(|_| about == About::Stale) else {
            return about == About::Open && record.state == PhaseState::Cancelling;
        };
        let is = |run, attempt| *token == AttemptToken::new(&self.uid, &record.id, run, attempt);
        let first = record.attempt.saturating_sub(FORGOTTEN_ATTEMPTS_MAX).max(1);
        (first..=record.attempt).any(|attempt| is(record.run, attempt))
            || record.run.checked_sub(1).is_some_and(|run| (1..=FORGOTTEN_ATTEMPTS_MAX).any(|attempt| is(run, attempt)))
    }

    /// Somebody runs what is over: it was away when that was said, and would go on beside the next attempt.
    fn call_off(&mut self, report: &Report) {
        if let Some(token) = &report.token {
            let (phase, token, runtime) = (report.phase.clone(), token.clone(), report.runtime.clone());
            self.push(Output::Control(Control::Cancel { phase, token, runtime }));
        }
    }

    /// Whether the report is about an attempt of ours, and from whoever holds it. A report on a phase that is open to it
    /// is an acceptance: early peers never ack.
    fn is_believed(&mut self, ix: PhaseIx, report: &Report, now: Timestamp) -> bool {
        let row = self.row(ix);
        let state = row.record.state;
        if state.is_bound() {
            let is_holder = same_runtime(row.record.runtime.as_deref(), report.runtime.as_deref());
            if !is_holder {
                self.note(NoteKind::DoubleAccept, &report.phase);
            }
            return is_holder;
        }
        // A token is proof that we offered the attempt, and so that its waits were satisfied.
        let is_offered = row.is_open() && (report.token.is_some() || row.unmet == 0);
        let retries_itself = self.strategy == Strategy::Runtime
            && state == PhaseState::BackingOff
            && report.status == ReportStatus::Running;
        let is_waiting = state == PhaseState::Waiting || retries_itself;
        match () {
            () if is_offered => {}
            () if !row.wanted => {
                self.note(NoteKind::NotWanted, &report.phase);
                return false;
            }
            () if !is_waiting || report.token.is_some() => {
                self.note(NoteKind::NoEffect, &report.phase);
                return false;
            }
            () if row.unmet > 0 => {
                self.note(NoteKind::OrderViolated, &report.phase);
                if self.strategy != Strategy::Runtime {
                    return false;
                }
            }
            () => {}
        }
        self.bind(ix, PhaseState::Running, report.runtime.as_deref(), report.token.is_none(), now);
        true
    }

    /// `running`: the attempt has begun, or is still alive.
    fn progress(&mut self, ix: PhaseIx, report: &Report, now: Timestamp) {
        if self.phase(ix).state == PhaseState::Queued {
            self.change(ix, PhaseState::Running, None, "", now);
        }
        let row = self.row_mut(ix);
        row.heard_at = now;
        row.asked = false;
        let mut is_changed = false;
        if report.heartbeat.is_some() && row.record.heartbeat != report.heartbeat {
            row.record.heartbeat = report.heartbeat;
            is_changed = true;
        }
        if report.progress.is_some() && row.record.progress != report.progress {
            row.record.progress.clone_from(&report.progress);
            is_changed = true;
        }
        if is_changed {
            self.touch();
        }
        self.set_timer(ix);
    }

    /// Gives the open attempt, or the next one where none is open, to a runtime.
    fn bind(&mut self, ix: PhaseIx, to: PhaseState, runtime: Option<&str>, tokenless: bool, now: Timestamp) {
        self.uncount(ix);
        let row = self.row_mut(ix);
        if row.record.offers == 0 {
            row.record.attempt += 1;
        }
        row.record.runtime = runtime.map(|name| short(name).to_owned());
        row.record.heartbeat = None;
        row.record.progress = None;
        row.record.tokenless = tokenless;
        row.record.started_at.get_or_insert(now);
        row.heard_at = now;
        row.asked = false;
        self.count(ix);
        self.change(ix, to, None, "", now);
        if to == PhaseState::Queued {
            let start = self.plan.phase(ix).spec.timeouts.start.or(self.settings.timeouts.start);
            self.set_due(ix, start.map(|start| after(now, start)));
        }
    }

    /// A runtime is out there.
    fn hear(&mut self) {
        if !self.heard {
            self.heard = true;
            self.touch();
        }
    }

    fn about(&self, ix: PhaseIx, token: Option<&AttemptToken>) -> About {
        let Some(token) = token else { return About::Unnamed };
        let row = self.row(ix);
        let record = &row.record;
        if row.is_open() && self.is_token(ix, token) {
            return About::Open;
        }
        if record.state.is_terminal() {
            return About::Stale;
        }
        let last = self.plan.phase(ix).spec.max_attempts.min(record.attempt.saturating_add(FORGOTTEN_ATTEMPTS_MAX));
        (record.attempt + 1..=last)
            .find(|&attempt| *token == AttemptToken::new(&self.uid, &record.id, record.run, attempt))
            .map_or(About::Stale, About::Forgotten)
    }

    /// Takes up an attempt that we offered and a crash forgot: all before it are over.
    fn remember(&mut self, ix: PhaseIx, about: About, now: Timestamp) {
        let About::Forgotten(attempt) = about else { return };
        self.uncount(ix);
        let record = &mut self.row_mut(ix).record;
        record.attempt = attempt;
        record.offers = 1;
        record.runtime = None;
        record.tokenless = false;
        self.count(ix);
        self.change(ix, PhaseState::Waiting, None, "", now);
    }

    fn refuse(&mut self, ask: Option<AskId>) {
        self.answer(ask, Grant::Refused);
    }

    fn answer(&mut self, ask: Option<AskId>, grant: Grant) {
        if let Some(ask) = ask {
            self.push(Output::Answer { ask, grant });
        }
    }

    pub(super) fn note(&mut self, kind: NoteKind, phase: &PhaseId) {
        self.push(Output::Note(Note { kind, phase: phase.to_string() }));
    }
}

/// Two names, or the lack of one, that may be the same runtime: peers that do not name themselves pass for any.
fn same_runtime(holder: Option<&str>, speaker: Option<&str>) -> bool {
    match (holder, speaker) {
        (Some(holder), Some(speaker)) => holder == short(speaker),
        _ => true,
    }
}

fn short(name: &str) -> &str {
    let mut end = name.len().min(RUNTIME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}
