//! Who stands in line: the sums over phases, the queue of those that may be offered, and the offers themselves.

use std::cmp::Reverse;

use jiff::Timestamp;

use super::{
    Control, Counts, OffersGate, Output, Pace, PhaseRecord, PhaseState, Strategy, Target, TargetReason,
    session::{ReadyKey, Session},
    timing::{Dice, after, ask_delay, repeat_delay},
};
use crate::manifest::PhaseIx;

impl Session {
    fn ready_key(&self, ix: PhaseIx) -> ReadyKey {
        let row = self.row(ix);
        (Reverse(self.plan.phase(ix).spec.priority), row.record.offers > 0, Reverse(row.depth), ix)
    }

    /// Whether the phase stands in the queue for an offer: wanted, waiting, nothing unmet, no clock to sit out.
    pub(super) fn set_ready(&mut self, ix: PhaseIx) {
        let row = self.row(ix);
        let is_ready =
            row.wanted && row.record.state == PhaseState::Waiting && row.unmet == 0 && row.record.due.is_none();
        let to = is_ready.then(|| self.ready_key(ix));
        self.stand(ix, to);
    }

    /// Puts the phase into the queue under this key, or takes it out. Its row knows where it stands: most changes of a
    /// phase have nothing to do with the queue, and looking it up there each time was a third of a walk.
    fn stand(&mut self, ix: PhaseIx, to: Option<ReadyKey>) {
        let from = std::mem::replace(&mut self.rows[ix.index()].ready, to);
        if from == to {
            return;
        }
        if let Some(from) = from {
            self.ready.remove(&from);
        }
        if let Some(to) = to {
            self.ready.insert(to);
        }
    }

    /// Takes the phase out of every sum, before it changes.
    pub(super) fn uncount(&mut self, ix: PhaseIx) {
        let row = &self.rows[ix.index()];
        self.in_flight -= u32::from(row.record.state.is_in_flight());
        if row.wanted {
            *self.counts.of(&row.record) -= 1;
            self.open -= u32::from(!row.record.state.is_terminal());
        }
    }

    /// Puts the phase back into every sum, after it changed.
    pub(super) fn count(&mut self, ix: PhaseIx) {
        let row = &mut self.rows[ix.index()];
        let state = row.record.state;
        self.in_flight += u32::from(state.is_in_flight());
        if row.wanted {
            *self.counts.of(&row.record) += 1;
            self.open += u32::from(!state.is_terminal());
        }
        let is_early = matches!(state, PhaseState::Waiting | PhaseState::Offered | PhaseState::BackingOff);
        let is_unstarted = row.wanted && is_early && row.record.started_at.is_none();
        if std::mem::replace(&mut row.is_unstarted, is_unstarted) != is_unstarted {
            if is_unstarted {
                self.unstarted.insert(ix);
            } else {
                self.unstarted.remove(&ix);
            }
        }
        self.set_ready(ix);
    }

    /// Offers what is ready, as far as the gate, the store, the pace and the slots allow.
    pub(super) fn offer_ready(&mut self, now: Timestamp) {
        if !self.may_offer() {
            return;
        }
        self.announce_start(now);
        if self.strategy == Strategy::Runtime {
            return;
        }
        while self.has_slot() {
            let Some(&(.., ix)) = self.ready.first() else { return };
            self.offer(ix, now);
        }
    }

    fn may_offer(&self) -> bool {
        self.gate == OffersGate::Open
            && !self.unstored
            && self.listening_until.is_none()
            && self.settings.pace == Pace::Going
            && self.verdict.is_none()
    }

    pub(super) fn has_slot(&self) -> bool {
        self.settings.parallelism.is_none_or(|slots| self.in_flight < slots.get())
    }

    fn offer(&mut self, ix: PhaseIx, now: Timestamp) {
        self.uncount(ix);
        let record = &mut self.row_mut(ix).record;
        if record.offers == 0 {
            record.attempt += 1;
            record.runtime = None;
            record.heartbeat = None;
            record.progress = None;
            record.tokenless = false;
        }
        record.offers += 1;
        let (attempt, offer) = (record.attempt, record.offers);
        self.count(ix);
        self.change(ix, PhaseState::Offered, None, "", now);
        let timeout = self.plan.phase(ix).spec.timeouts.offer.unwrap_or(self.settings.timeouts.offer);
        self.set_due(ix, Some(after(now, timeout)));
        let reason = match (offer, attempt) {
            (2.., _) => TargetReason::Repeat,
            (_, 2..) => TargetReason::Retry,
            _ => TargetReason::DependenciesSatisfied,
        };
        let token = self.token(ix);
        let row = self.row_mut(ix);
        row.offered = Some((row.record.run, attempt, token.clone()));
        self.push(Output::Target(Target { phase: ix, token, reason, attempt, offer }));
    }

    /// `.start`, at the pace of offers, until somebody is heard. A runtime that walks the phases by itself is offered
    /// nothing that it would answer: where it may have spoken unheard, it is asked.
    fn announce_start(&mut self, now: Timestamp) {
        if self.start_timer().is_none_or(|due| due > now) {
            return;
        }
        self.starts += 1;
        let dice = Dice::throw(self.seed(), [u64::from(self.starts), 0, 0, 0]);
        let pause = if self.heard {
            ask_delay(self.starts, dice)
        } else {
            self.settings.timeouts.offer.saturating_add(repeat_delay(self.starts, dice))
        };
        self.start_due = Some(after(now, pause));
        if !self.heard {
            self.push(Output::Start);
        }
        if self.strategy == Strategy::Runtime && (self.heard || self.starts > 1) {
            self.push(Output::Control(Control::Report { attempt: None }));
        }
    }

    /// A phase has changed its state: whoever walks the phases is heard.
    pub(super) fn note_progress(&mut self, now: Timestamp) {
        if self.strategy == Strategy::Runtime && self.heard {
            self.starts = 0;
            self.start_due = Some(after(now, ask_delay(0, Dice::throw(self.seed(), [0; 4]))));
        }
    }

    /// When `.start` is to be published, or the runtime to be asked, if either may be at all.
    pub(super) fn start_timer(&self) -> Option<Timestamp> {
        let is_due = (!self.heard || self.strategy == Strategy::Runtime) && self.may_offer();
        self.start_due.filter(|_| is_due)
    }
}

impl Counts {
    /// The sum that a wanted phase in this state is part of. (Idle is kept apart: no wanted phase is.)
    fn of(&mut self, record: &PhaseRecord) -> &mut u32 {
        match record.state {
            PhaseState::Waiting | PhaseState::Idle => &mut self.waiting,
            PhaseState::Offered => &mut self.offered,
            PhaseState::Queued => &mut self.queued,
            PhaseState::Running => &mut self.running,
            PhaseState::BackingOff => &mut self.backing_off,
            PhaseState::Held => &mut self.held,
            PhaseState::Cancelling => &mut self.cancelling,
            PhaseState::Complete => &mut self.complete,
            PhaseState::Failed if record.ignored => &mut self.ignored,
            PhaseState::Failed => &mut self.failed,
            PhaseState::UpstreamFailed => &mut self.upstream_failed,
            PhaseState::Skipped => &mut self.skipped,
            PhaseState::Cancelled => &mut self.cancelled,
        }
    }
}
